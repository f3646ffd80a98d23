//! Lists of integers that operations take from the host: token ids, row numbers, bounds.

use super::{Buffer, Cuda};

/// Lists kept on the device. A list is known by where it lies on the host: the layers of a pass hand over the same one
/// again and again, and it is sent once. What it holds is compared each time, so that a changed list is sent anew, to
/// the same place: a recorded graph keeps reading there, and its lists stay until it goes. Lists that are parts of one that
/// [`Cuda::hold`] was told of are parts of its copy.
#[derive(Default)]
pub(super) struct Lists {
    known: Vec<List>,
    clock: u64,
    /// What was asked for since the recording under way began.
    recording: Option<Vec<Host>>,
}

/// Address and bytes on the host.
pub(super) type Host = (usize, usize);

fn host_of(bytes: &[u8]) -> Host {
    (bytes.as_ptr() as usize, bytes.len())
}

struct List {
    host: Host,
    /// Whether its parts are found here too.
    whole: bool,
    /// Recorded graphs that read it.
    pins: usize,
    content: Vec<u8>,
    buffer: Buffer,
    used: u64,
}

impl List {
    /// Where a list lies in this one, which is all of it or has parts.
    fn place_of(&self, (start, bytes): Host) -> Option<usize> {
        let (from, all) = self.host;
        let inside = self.whole && start >= from && start + bytes <= from + all;
        (self.host == (start, bytes) || inside).then(|| start - from)
    }

    /// Sends `bytes` to `place` unless they are there.
    fn write(&mut self, place: usize, bytes: &[u8]) {
        let content = &mut self.content[place..place + bytes.len()];
        if content != bytes {
            content.copy_from_slice(bytes);
            self.buffer.write(place, bytes);
        }
    }
}

/// More lists than a pass has; beyond this the one unused for longest makes room.
const KEPT: usize = 96;

impl Lists {
    /// The list asked for or the one that it is a part of, and its place there.
    fn find(&mut self, host: Host) -> Option<(&mut List, usize)> {
        let whole = self.known.iter().position(|known| known.whole && known.place_of(host).is_some());
        let at = whole.or_else(|| self.known.iter().position(|known| known.host == host))?;
        let place = self.known[at].place_of(host)?;
        Some((&mut self.known[at], place))
    }

    /// A list to be overwritten: the one unused for longest that no graph reads, or a new one.
    fn vacant(&mut self, gpu: &'static Cuda) -> List {
        let free = self.known.iter().enumerate().filter(|(_, known)| known.pins == 0);
        let oldest = free.min_by_key(|(_, known)| known.used).map(|(at, _)| at);
        if let Some(oldest) = oldest.filter(|_| self.known.len() >= KEPT) {
            // Work under way may still read it; the new content is sent after that work on the same stream.
            return self.known.swap_remove(oldest);
        }
        List { host: (0, 0), whole: false, pins: 0, content: Vec::new(), buffer: Buffer::empty(gpu), used: 0 }
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
        if let Some((known, place)) = self.lists().find(host_of(bytes)).filter(|(known, _)| known.pins > 0) {
            known.write(place, bytes);
        }
    }

    /// Work that was started has written to the device's copy of `list`: it is sent again when it is wanted.
    pub fn changed<T: bytemuck::Pod>(&'static self, list: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(list);
        if let Some((known, place)) = self.lists().find(host_of(bytes)) {
            // Other than any bytes that are compared with it next, if those are still these.
            let content = &mut known.content[place..place + bytes.len()];
            content.iter_mut().zip(bytes).for_each(|(content, byte)| *content = !byte);
        }
    }

    /// Sends `list` as a whole; parts of it that operations ask for are parts of its copy, so that [`refresh`](Self::refresh)
    /// sends them together.
    pub fn hold<T: bytemuck::Pod>(&'static self, list: &[T]) {
        let host = host_of(bytemuck::cast_slice(list));
        for known in &mut self.lists().known {
            // Of a list that was there before.
            known.whole = known.whole
                && (known.pins > 0 || known.host.0 + known.host.1 <= host.0 || host.0 + host.1 <= known.host.0);
        }
        self.list(list);
        if let Some((known, _)) = self.lists().find(host) {
            known.whole = true;
        }
    }

    /// A device copy of `list`, valid until many other lists were asked for; in recorded work, as long as the graph.
    pub(crate) fn list<T: bytemuck::Pod>(&'static self, list: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(list);
        let host = host_of(bytes);
        let mut lists = self.lists();
        lists.clock += 1;
        let (clock, recording) = (lists.clock, lists.recording.is_some());
        if let Some((found, place)) = lists.find(host) {
            let sent = found.content[place..place + bytes.len()] == *bytes;
            assert!(sent || !recording, "a list of {} bytes has changed since its work ran before", bytes.len());
            found.write(place, bytes);
            found.used = clock;
            let (pointer, all) = (found.buffer.pointer() + place as u64, found.host);
            if recording {
                found.pins += 1;
                lists.recording.get_or_insert_default().push(all);
            }
            return pointer;
        }
        assert!(!recording, "a list of {} bytes is not there although its work ran before", bytes.len());
        let mut list = lists.vacant(self);
        (list.host, list.whole, list.used) = (host, false, clock);
        list.content.clear();
        list.content.extend_from_slice(bytes);
        list.buffer.reserve(bytes.len().max(1));
        list.buffer.write(0, bytes);
        let pointer = list.buffer.pointer();
        lists.known.push(list);
        pointer
    }
}
