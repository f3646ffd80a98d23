//! A sequence of launches recorded once and started with one call.

use cudarc::driver::sys;

use super::lists::Host;
use super::{Cuda, check};

/// Recorded work. Everything that it reads and writes must stay where it was when it was recorded; its lists do.
pub struct Graph {
    gpu: &'static Cuda,
    run: sys::CUgraphExec,
    lists: Vec<Host>,
}

// SAFETY: used through its GPU's stream only.
unsafe impl Send for Graph {}
// SAFETY: a launch only asks the driver, which takes turns by itself.
unsafe impl Sync for Graph {}

impl Cuda {
    /// Whether work is being recorded instead of done.
    pub(super) fn is_recording(&self) -> bool {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: `status` is a place for the result.
        check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(self.streams[0], &mut status) });
        status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
    }

    /// Records what `work` asks for instead of doing it. `work` must have run once before, so that all memory is there,
    /// all kernels are compiled and all lists are sent.
    pub fn record(&'static self, work: impl FnOnce()) -> Graph {
        self.enter();
        let (mut graph, mut run) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: plain calls of the driver's interface with places for their results.
        unsafe {
            check("cuStreamBeginCapture", sys::cuStreamBeginCapture_v2(self.streams[0], mode));
            self.begin_noting_lists();
            work();
            check("cuStreamEndCapture", sys::cuStreamEndCapture(self.streams[0], &mut graph));
            check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut run, graph, 0));
            check("cuGraphDestroy", sys::cuGraphDestroy(graph));
        }
        Graph { gpu: self, run, lists: self.noted_lists() }
    }
}

impl Graph {
    /// Asks for the recorded work once more.
    pub fn launch(&self) {
        self.gpu.enter();
        // SAFETY: the graph lives as long as `self`.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.run, self.gpu.streams[0]) });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.enter();
        self.gpu.release_lists(&self.lists);
        // SAFETY: nothing uses it any more; the driver waits for a launch under way.
        unsafe { sys::cuGraphExecDestroy(self.run) };
    }
}
