//! Appended lines forced to the disk as they come, without the writer waiting for it.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

#[derive(Default)]
struct State {
    /// Lines written and lines known to be on the disk.
    written: u64,
    synced: u64,
    error: Option<io::Error>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Syncs a file from a thread of its own. Lines that are written while a sync runs share the next one, so that a slow
/// disk costs delay and no throughput.
pub(crate) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread on a second handle of `file`.
    pub fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("row sync".into()).spawn(move || work(&file, &theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A line was written. Returns the error of an earlier sync, if there was one.
    pub fn written(&self) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.written += 1;
        self.shared.changed.notify_all();
        state.error.take().map_or(Ok(()), Err)
    }

    /// Waits until all that was written is on the disk.
    pub fn wait(&self) -> io::Result<()> {
        let mut state = self.shared.lock();
        while state.synced < state.written && state.error.is_none() {
            state = self.shared.wait(state);
        }
        state.error.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has lost nothing but the last sync.
            let _ = thread.join();
        }
    }
}

fn work(file: &File, shared: &Shared) {
    let mut state = shared.lock();
    loop {
        while state.synced == state.written && !state.closed {
            state = shared.wait(state);
        }
        let seen = state.written;
        if state.synced == seen {
            return;
        }
        drop(state);
        let result = file.sync_data();
        state = shared.lock();
        state.synced = seen;
        if let Err(error) = result {
            state.error = Some(error);
        }
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn waiting_means_that_every_line_was_synced() {
        let mut file = tempfile::tempfile().expect("file");
        let syncer = Syncer::start(&file).expect("thread");
        for _ in 0..200 {
            file.write_all(b"line\n").expect("write");
            syncer.written().expect("sync");
        }
        syncer.wait().expect("sync");
        let state = syncer.shared.lock();
        assert_eq!((state.written, state.synced), (200, 200));
    }
}
