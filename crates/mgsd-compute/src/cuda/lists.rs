//! Lists of integers that operations take from the host: token ids, row numbers, bounds.

use super::{Buffer, Cuda};

/// Lists kept on the device. A list is known by where it lies on the host: the layers of a pass hand over the same one
/// again and again, and it is sent once. What it holds is compared each time, so that a changed list is sent anew, to
/// the same place: a captured graph keeps reading there.
#[derive(Default)]
pub(super) struct Lists {
    known: Vec<List>,
    clock: u64,
}

struct List {
    host: (usize, usize),
    content: Vec<u8>,
    buffer: Buffer,
    used: u64,
}

/// More lists than a pass has; beyond this the one unused for longest makes room.
const KEPT: usize = 96;

impl Cuda {
    /// Sends a list again if it has changed, for a [`Graph`](super::Graph) that reads it.
    pub fn refresh<T: bytemuck::Pod>(&'static self, list: &[T]) {
        self.list(list);
    }

    /// A device copy of `list`, valid until many other lists were asked for.
    pub(crate) fn list<T: bytemuck::Pod>(&'static self, list: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(list);
        let host = (bytes.as_ptr() as usize, bytes.len());
        let mut lists = self.lists.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        lists.clock += 1;
        let now = lists.clock;
        if let Some(found) = lists.known.iter_mut().find(|known| known.host == host) {
            found.used = now;
            if found.content != bytes {
                found.content.copy_from_slice(bytes);
                found.buffer.write(0, bytes);
            }
            return found.buffer.pointer();
        }
        let mut list = if lists.known.len() < KEPT {
            List { host, content: Vec::new(), buffer: Buffer::empty(self), used: now }
        } else {
            // Work under way may still read it; the new content is sent after that work on the same stream.
            let oldest = lists.known.iter().enumerate().min_by_key(|(_, known)| known.used).map_or(0, |(at, _)| at);
            lists.known.swap_remove(oldest)
        };
        (list.host, list.used) = (host, now);
        list.content.clear();
        list.content.extend_from_slice(bytes);
        list.buffer.reserve(bytes.len().max(1));
        list.buffer.write(0, bytes);
        let pointer = list.buffer.pointer();
        lists.known.push(list);
        pointer
    }
}
