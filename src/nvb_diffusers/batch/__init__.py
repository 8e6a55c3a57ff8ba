"""Views of thousands of photos, unattended: read from anywhere, shared among processes, written in shards."""

from nvb_diffusers.batch.run import BatchSettings, make_views
from nvb_diffusers.batch.shards import finish
from nvb_diffusers.batch.sources import open_photos

__all__ = ["BatchSettings", "finish", "make_views", "open_photos"]
