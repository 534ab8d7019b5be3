"""Videos that tests make: of any codec, size and timing, with sound, with keyframes where they are wanted."""

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(number, height=120, width=160):
    """A gradient with a white square that moves: every frame differs from every other."""
    image = np.linspace(40, 200, width)[None, :, None].repeat(height, 0).repeat(3, 2).astype(np.uint8)
    left = 4 + (number * 7) % (width - 40)
    image[20:50, left : left + 30] = (250, 250, 250)
    return image


def write(
    path, count=40, size=(120, 160), codec="libx264", pixels="yuv420p", times=None, make=picture, faststart=False, options=None, shape=None
):
    """`shape`: width by height of its pixels, where the header says."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=20, options=options or quiet)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.sample_aspect_ratio = shape or 0
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(make(number, *size), format="rgb24")
            frame.pts, frame.time_base = int(times[number] * 1000) if times else number * 50, Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


def lay(path, matrix):
    """Writes a display matrix (a, b, c, d) into an MP4: a step to the right leads (a, b) right and down, one down (c, d)."""
    content = bytearray(Path(path).read_bytes())
    at = content.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[at + place : at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    Path(path).write_bytes(content)
    return str(path)


def squeezed(path, target, size, shape, count=12):
    """The first pictures of a video in so many pixels (width, height), of the shape that shows them as they were."""
    with av.open(path) as given, av.open(str(target), "w") as made:
        video = given.streams.video[0]
        stream = made.add_stream("libx264", rate=video.average_rate, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape or 0
        for frame in itertools.islice(given.decode(video), count):
            for packet in stream.encode(frame.reformat(*size, format="yuv420p", interpolation="BICUBIC")):
                made.mux(packet)
        for packet in stream.encode():
            made.mux(packet)
    return str(target)


def write_with_sound(path, times, sound, last=None, codecs=("libx264", "aac"), tags=None, keyframes=None):
    """Pictures at those times (seconds), the last one shown for `last` seconds, and so many seconds of silence; a keyframe every so many pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codecs[0], rate=20, options={"bf": "0"} | ({"g": str(keyframes), "sc_threshold": "0"} if keyframes else {})
        )
        stream.metadata.update(tags or {})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream(codecs[1], rate=48000, layout="mono", bit_rate=128000) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            if last is not None:
                packet.duration = round(last / packet.time_base)
            container.mux(packet)
        for number in range(int(sound * 48000) // 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, number * 1024, Fraction(1, 48000)
            for packet in voice.encode(frame):
                container.mux(packet)
        for packet in voice.encode() if voice else ():
            container.mux(packet)
    return path


def _compress(path, target, options, rate=None):
    """The pictures of a video, compressed once more."""
    with av.open(path) as given, av.open(str(target), "w") as made:
        video = given.streams.video[0]
        stream = made.add_stream("libx264", rate=rate or video.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = video.sample_aspect_ratio or 0
        for frame in given.decode(video=0):
            frame.pict_type = av.video.frame.PictureType.NONE
            for packet in stream.encode(frame):
                made.mux(packet)
        for packet in stream.encode():
            made.mux(packet)
    return str(target)


def with_keyframes(path, target, every):
    """The video, encoded anew with a keyframe now and then."""
    return _compress(path, target, {"g": str(every), "sc_threshold": "0"}, rate=30)


def packed_anew(path, target, options=None):
    """The video with the same pictures in another file, of other bytes. Options are the container's: with `live` its header says no length."""
    with av.open(path) as given, av.open(str(target), "w", options=options or {}) as made:
        made.metadata["title"] = "uploaded again"
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return str(target)


def encoded_anew(path, target, crf):
    """The video compressed once more: what it shows is nearly the same."""
    return _compress(path, target, {"crf": str(crf), "threads": "1", "bf": "0"})


def altered(path, target, start=0.0, seconds=None, crf=18, scale=1.0, crop=0.0, mirror=False, still=False):
    """A piece of a video as somebody uploads it again.

    Args:
        path: The video.
        target: Where the piece goes.
        start: Where it begins, in seconds; its own time begins at 0.
        seconds: Its length; None to the end.
        crf: How much x264 may lose.
        scale: Of both sides.
        crop: Share that is cut off each side, before scaling.
        mirror: Left becomes right.
        still: Its first picture, all the time.
    """
    with av.open(path) as given, av.open(str(target), "w") as made:
        video = given.streams.video[0]
        left, top = (int(side * crop) for side in (video.width, video.height))
        size = [round((side - 2 * cut) * scale / 2) * 2 for side, cut in ((video.width, left), (video.height, top))]
        # without B-frames: x264's search for their places gives other bytes in each run, also in one thread
        stream = made.add_stream("libx264", rate=video.average_rate, options={"crf": str(crf), "threads": "1", "preset": "fast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = video.sample_aspect_ratio or 0
        stream.codec_context.time_base = Fraction(1, 12800)
        first = None
        for frame in given.decode(video=0):
            if frame.time < start or (seconds is not None and frame.time >= start + seconds):
                continue
            image = frame.to_ndarray(format="rgb24") if first is None or not still else first
            first = image if first is None else first
            shown = image[top : image.shape[0] - top, left : image.shape[1] - left]
            shown = np.ascontiguousarray(shown[:, ::-1] if mirror else shown)
            fresh = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(*size, format="yuv420p", interpolation="BICUBIC")
            fresh.pts, fresh.time_base = round((frame.time - start) * 12800), Fraction(1, 12800)
            for packet in stream.encode(fresh):
                made.mux(packet)
        for packet in stream.encode():
            made.mux(packet)
    return str(target)
