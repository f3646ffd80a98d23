//! Lists of integers that operations take from the host: token ids, row numbers, bounds.

use super::{Buffer, Cuda};

/// Lists kept on the device. A list is known by where it lies on the host: the layers of a pass hand over the same one
/// again and again, and it is sent once. What it holds is compared each time, so that a changed list is sent anew, to
/// the same place: a recorded graph keeps reading there, and its lists stay until it goes.
#[derive(Default)]
pub(super) struct Lists {
    known: Vec<List>,
    clock: u64,
    /// What was asked for since the recording under way began.
    recording: Option<Vec<Host>>,
}

/// Address and bytes on the host.
pub(super) type Host = (usize, usize);

struct List {
    host: Host,
    /// Recorded graphs that read it.
    pins: usize,
    content: Vec<u8>,
    buffer: Buffer,
    used: u64,
}

impl List {
    /// Sends `bytes`, as many as there are, unless they are there.
    fn hold(&mut self, bytes: &[u8]) {
        if self.content != bytes {
            self.content.copy_from_slice(bytes);
            self.buffer.write(0, bytes);
        }
    }
}

/// More lists than a pass has; beyond this the one unused for longest makes room.
const KEPT: usize = 96;

impl Lists {
    /// Where the list asked for is, if it is known; it counts as used now.
    fn find(&mut self, host: Host) -> Option<&mut List> {
        let found = self.known.iter_mut().find(|known| known.host == host)?;
        found.used = self.clock;
        if let Some(recording) = &mut self.recording {
            recording.push(host);
            found.pins += 1;
        }
        Some(found)
    }

    /// A list to be overwritten: the one unused for longest that no graph reads, or a new one.
    fn vacant(&mut self, gpu: &'static Cuda) -> List {
        let free = self.known.iter().enumerate().filter(|(_, known)| known.pins == 0);
        let oldest = free.min_by_key(|(_, known)| known.used).map(|(at, _)| at);
        if let Some(oldest) = oldest.filter(|_| self.known.len() >= KEPT) {
            // Work under way may still read it; the new content is sent after that work on the same stream.
            return self.known.swap_remove(oldest);
        }
        List { host: (0, 0), pins: 0, content: Vec::new(), buffer: Buffer::empty(gpu), used: 0 }
    }
}

impl Cuda {
    /// From here on the lists asked for are noted, and stay.
    pub(super) fn begin_noting_lists(&self) {
        self.lists().recording = Some(Vec::new());
    }

    /// The lists noted, to be given to [`Cuda::release_lists`].
    pub(super) fn noted_lists(&self) -> Vec<Host> {
        self.lists().recording.take().unwrap_or_default()
    }

    /// These may go again.
    pub(super) fn release_lists(&self, noted: &[Host]) {
        let mut lists = self.lists();
        for host in noted {
            if let Some(known) = lists.known.iter_mut().find(|known| known.host == *host) {
                known.pins = known.pins.saturating_sub(1);
            }
        }
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends a list again if it has changed and a [`Graph`](super::Graph) reads it.
    pub fn refresh<T: bytemuck::Pod>(&'static self, list: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(list);
        let host = (bytes.as_ptr() as usize, bytes.len());
        if let Some(known) = self.lists().known.iter_mut().find(|known| known.host == host && known.pins > 0) {
            known.hold(bytes);
        }
    }

    /// A device copy of `list`, valid until many other lists were asked for; in recorded work, as long as the graph.
    pub(crate) fn list<T: bytemuck::Pod>(&'static self, list: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(list);
        let host = (bytes.as_ptr() as usize, bytes.len());
        let mut lists = self.lists();
        lists.clock += 1;
        if let Some(found) = lists.find(host) {
            found.hold(bytes);
            return found.buffer.pointer();
        }
        assert!(lists.recording.is_none(), "a list of {} bytes is not there although its work ran before", bytes.len());
        let mut list = lists.vacant(self);
        (list.host, list.used) = (host, lists.clock);
        list.content.clear();
        list.content.extend_from_slice(bytes);
        list.buffer.reserve(bytes.len().max(1));
        list.buffer.write(0, bytes);
        let pointer = list.buffer.pointer();
        lists.known.push(list);
        pointer
    }
}
