"""Writing so that nothing half-written ever looks whole, and nothing whole is lost.

A folder is written beside its destination, in a folder `.NAME.KEY.part` of its own, and exchanged
with what stands there in one step:

    .NAME.KEY.part/lock      locked as long as its writer lives, see `locks`; in any process and
                             container, so what is not locked was left by a run that was killed
    .NAME.KEY.part/new       what is being written; after the exchange, what it replaced
    .NAME.KEY.part/old-…     what was replaced, where the system cannot exchange. If the run is
                             killed just then, whoever comes next puts it back

What was replaced is removed, unless somebody reads it: then the next run that finds it free does.
"""

from sdexport.artifacts.storage.aside import (
    ASIDE,
    IN_USE,
    LEFTOVER,
    LOCK,
    NEW,
    OLD,
    WRITTEN,
    discard,
    found_again,
    leftovers,
    remove_leftover,
    sweep,
)
from sdexport.artifacts.storage.errors import explained
from sdexport.artifacts.storage.files import (
    check_room,
    json_text,
    remove_file_aside,
    write_bytes,
    write_files,
    write_json,
    write_text,
)
from sdexport.artifacts.storage.folders import (
    folder_aside,
    refuse_replacing,
    scratch_folder,
    sole_writer,
    temporary_folder,
)
from sdexport.artifacts.storage.trees import (
    check_writable,
    copy_file,
    copy_tree,
    flush,
    free_bytes,
    remove_tree,
    size_of,
)

__all__ = [
    "ASIDE", "IN_USE", "LEFTOVER", "LOCK", "NEW", "OLD", "WRITTEN", "check_room",
    "check_writable", "copy_file", "copy_tree", "discard", "explained", "flush", "folder_aside",
    "found_again", "free_bytes", "json_text", "leftovers", "refuse_replacing",
    "remove_file_aside", "remove_leftover", "remove_tree", "scratch_folder", "size_of",
    "sole_writer", "sweep", "temporary_folder", "write_bytes", "write_files", "write_json",
    "write_text",
]  # fmt: skip
