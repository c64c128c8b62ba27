"""Ways of reading a gradient: the hazards, and beside each what is safe."""

from harness.probes.accesses.backward import AfterBackward, AfterDeepBackward, InHook, InPostAccumulateHook
from harness.probes.accesses.base import Access
from harness.probes.accesses.collective import (
    AllReduced,
    AsyncAfterWait,
    AsyncBeforeWait,
    NcclHost,
    NcclHostWaited,
    NcclOtherStream,
    NcclOtherStreamWaited,
)
from harness.probes.accesses.kept import KeptBucketClone, KeptBucketView, KeptClone, KeptReference, KeptSetToNone
from harness.probes.accesses.stream import PinnedCopy, PinnedCopyWaited, SideStream, SideStreamWaited

ALL: tuple[type[Access], ...] = (
    *(AfterBackward, AfterDeepBackward, InHook, InPostAccumulateHook),
    *(KeptReference, KeptClone, KeptSetToNone, KeptBucketView, KeptBucketClone),
    *(AllReduced, AsyncBeforeWait, AsyncAfterWait),
    *(SideStream, SideStreamWaited, PinnedCopy, PinnedCopyWaited, NcclOtherStream, NcclOtherStreamWaited),
    *(NcclHost, NcclHostWaited),
)
