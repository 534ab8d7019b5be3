"""A small build of synthetic people, which several test files ask about."""

from data_pipeline.build import build_dataset
from data_pipeline.candidates import read_candidates_table
from data_pipeline.config import DataConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig


def config(people, **changes):
    """Of so many people, in this process."""
    base = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=people, images=4, workers=0)),
        analyze=AnalyzeConfig(workers=0),
        split=SplitConfig(val=0.2, test=0.2),
    )
    return base.model_copy(update=changes)


CONFIG = config(8)


def build(work, models, **changes):
    return build_dataset(CONFIG.model_copy(update=changes), str(work), models, [])


def read_candidates(folder):
    """All of a version as rows, as a small one's may be."""
    return read_candidates_table(folder).to_pylist()
