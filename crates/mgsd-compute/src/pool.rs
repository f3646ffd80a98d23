//! Threads that wait for work by looking, for a while, before they sleep.
//!
//! A decoding step of a small model is some fifty operations of ten microseconds each. Waking a sleeping thread costs as
//! much as one of them, so the workers look for the next operation for about as long as a step's pauses last.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError, TryLockError};

/// How often a worker looks before it sleeps; some fifty microseconds.
const LOOKS: usize = 4_000;
/// How often a caller looks for its last workers before it lets others run.
const PATIENCE: usize = 20_000;

/// `state`: low bits count the workers inside the open job, one bit says that a job is open, the rest counts jobs.
const INSIDE: usize = (1 << 15) - 1;
const OPEN: usize = 1 << 15;
const EPOCH: usize = 1 << 16;

/// The job that is open, on the stack of its caller.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Pool {
    state: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    /// Held by the caller whose job is open.
    caller: Mutex<()>,
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Workers that may take part.
    allowed: AtomicUsize,
    workers: usize,
}

/// How many threads work, the caller's included.
pub fn threads() -> usize {
    pool().allowed.load(Ordering::Relaxed) + 1
}

/// Lets at most `count` threads work (at least one, the caller's). The results of operations do not depend on it.
///
/// At the start it is the number of cores, or `MGSD_THREADS`.
pub fn set_threads(count: usize) {
    let pool = pool();
    let workers = count.saturating_sub(1).min(pool.workers);
    pool.allowed.store(workers, Ordering::Relaxed);
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let wished = std::env::var("MGSD_THREADS").ok().and_then(|n| n.parse().ok());
        let workers = wished.unwrap_or(cores).clamp(1, 256) - 1;
        let pool: &'static Pool = Box::leak(Box::new(Pool {
            state: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            caller: Mutex::new(()),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            allowed: AtomicUsize::new(workers),
            workers,
        }));
        for index in 0..workers {
            let started = std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || pool.work(index));
            // Without the thread the others do its share.
            drop(started);
        }
        pool
    })
}

/// Runs `task(0) .. task(count - 1)`, each once, in any order, on the threads that are free. When another caller is at it,
/// or from within a task, all of them run here.
pub(crate) fn run(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let pool = pool();
    let caller = match pool.caller.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    if count <= 1 || caller.is_none() || pool.allowed.load(Ordering::Relaxed) == 0 {
        (0..count).for_each(task);
        return;
    }
    let job = Job { task, count, next: AtomicUsize::new(0), panic: Mutex::new(None) };
    pool.open(&job);
    job.run();
    pool.close();
    let panic = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
    drop(caller);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

impl Job<'_> {
    /// Takes tasks until none is left. A panic is kept for the caller, and the tasks left are given up.
    fn run(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= self.count {
                    return;
                }
                (self.task)(index);
            }
        }));
        if let Err(panic) = outcome {
            self.next.store(self.count, Ordering::Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

impl Pool {
    fn open(&self, job: &Job) {
        self.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        let state = self.state.load(Ordering::Relaxed);
        // Nobody else changes the state while no job is open.
        self.state.store(state.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // Taken so that no worker is between its last look and its sleep.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Lets no more workers in and waits for those inside.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let state = self.await_job(seen);
            seen = state & !(OPEN | INSIDE);
            if index >= self.allowed.load(Ordering::Relaxed) {
                continue;
            }
            let mut state = state;
            // Enter, unless the job is closed by now.
            while state & OPEN != 0 && state & !(OPEN | INSIDE) == seen {
                match self.state.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::Relaxed) {
                    Ok(_) => {
                        // SAFETY: the job stays until `close` has seen this worker leave.
                        unsafe { (*self.job.load(Ordering::Relaxed)).run() };
                        self.state.fetch_sub(1, Ordering::SeqCst);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
        }
    }

    /// The state, once it counts another job than `seen`.
    fn await_job(&self, seen: usize) -> usize {
        let fresh = |state: usize| state & !(OPEN | INSIDE) != seen;
        for _ in 0..LOOKS {
            let state = self.state.load(Ordering::Acquire);
            if fresh(state) {
                return state;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.load(Ordering::SeqCst);
            if fresh(state) {
                break state;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        drop(guard);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_also_from_within_a_task_and_from_many_threads() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for count in 0..200 {
                        let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                        run(count, &|i| {
                            run(3, &|_| {
                                runs[i].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(runs.iter().all(|n| n.load(Ordering::Relaxed) == 3));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_works_on() {
        let outcome = catch_unwind(|| run(64, &|i| assert!(i != 40, "task 40")));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        run(64, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 63 * 32);
    }
}
