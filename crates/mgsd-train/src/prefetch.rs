//! Prepares the data of coming steps on other threads while the model computes.

use crate::error::{Result, TrainError};
use mgsd_compute::Device;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Steps that wait to be taken: at most two for each worker, and for many workers no more than this in all, since a step
/// of large pictures is large.
const AHEAD: usize = 16;

/// Yields `make(step)` for `step = first, first + 1, …` in this order, whatever the number of workers.
pub(crate) struct Prefetch<T> {
    /// Worker `w` makes the steps that leave the remainder `w`; asking them in turn restores the order.
    receivers: Vec<Option<Receiver<Result<T>>>>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
    end: u64,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Begins at once. `workers` threads run until step `end` or until this value is dropped.
    pub(crate) fn new(
        first: u64,
        end: u64,
        workers: usize,
        make: impl Fn(u64) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let make = Arc::new(make);
        let count = workers.max(1) as u64;
        let mut receivers = Vec::new();
        let mut handles = Vec::new();
        for worker in 0..count {
            let (sender, receiver) = sync_channel((AHEAD / count as usize).clamp(1, 2));
            let make = Arc::clone(&make);
            receivers.push(Some(receiver));
            handles.push(std::thread::spawn(move || {
                for step in (first..end).filter(|step| (step - first) % count == worker) {
                    let made = make(step);
                    let failed = made.is_err();
                    if sender.send(made).is_err() || failed {
                        return;
                    }
                }
            }));
        }
        Self { receivers, workers: handles, next: 0, end: end.saturating_sub(first) }
    }

    /// The next step's data; `None` after the last.
    pub(crate) fn next(&mut self) -> Option<Result<T>> {
        if self.next == self.end {
            return None;
        }
        let worker = (self.next % self.receivers.len() as u64) as usize;
        self.next += 1;
        let received = self.receivers[worker].as_ref()?.recv();
        Some(received.unwrap_or_else(|_| {
            Err(TrainError::Other {
                context: "preparing training data".to_string(),
                message: "the worker thread ended early".to_string(),
            })
        }))
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        // Closing the channels wakes workers that wait to hand over.
        self.receivers.iter_mut().for_each(|receiver| *receiver = None);
        for worker in self.workers.drain(..) {
            // A panic there has been reported by the panic hook already.
            let _ = worker.join();
        }
    }
}

/// Buffers handed back by the loop for reuse by workers.
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T> Pool<T> {
    pub(crate) fn take(&self, new: impl FnOnce() -> T) -> T {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop().unwrap_or_else(new)
    }

    pub(crate) fn give(&self, item: T) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(item);
    }
}

/// Threads worth giving to data: where the processor computes, too, one in four; beside a GPU all but two, up to one for each
/// step that may wait.
pub(crate) fn worker_count(device: Device) -> usize {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if device.is_cpu() { (all / 4).clamp(1, 8) } else { all.saturating_sub(2).clamp(1, AHEAD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_depend_on_the_number_of_workers() {
        for workers in [1, 3] {
            let mut prefetch = Prefetch::new(5, 25, workers, |step| {
                std::thread::sleep(std::time::Duration::from_micros(300 * (step % 3)));
                Ok(step)
            });
            let got: Vec<u64> = std::iter::from_fn(|| prefetch.next()).map(Result::unwrap).collect();
            assert_eq!(got, (5..25).collect::<Vec<_>>());
        }
    }

    #[test]
    fn dropping_it_early_ends_the_workers() {
        let mut prefetch = Prefetch::new(0, u64::MAX, 2, Ok);
        assert_eq!(prefetch.next().unwrap().unwrap(), 0);
        drop(prefetch);
    }
}
