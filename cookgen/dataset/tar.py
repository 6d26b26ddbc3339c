"""Tar members as the dataset format wants them: the same content gives the same bytes."""

from __future__ import annotations

import tarfile


def tar_member(name: str, num_bytes: int) -> tarfile.TarInfo:
    """A member's header: mtime 0, uid and gid 0, mode 0644, no owner names. Write it with tarfile.PAX_FORMAT.

    Source: FORMAT, "One sample = one clip". A TarInfo's defaults are what the format wants, stated here all the same.
    """
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    member.mtime = member.uid = member.gid = 0
    member.mode = 0o644
    member.uname = member.gname = ""
    return member
