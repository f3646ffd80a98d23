//! Which endpoint gets the next question: the least busy one of those that are there.
//!
//! An endpoint that cannot be reached, or that stumbles three times in a row, rests for a while; then one question is
//! sent to it as a trial. One that asks for a pause (429 with `Retry-After`) gets it. One that refuses us (401, or
//! 404 before it has answered) is not asked again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many failures in a row make an endpoint rest.
const REST_AFTER: u32 = 3;
/// No rest is longer.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// What an attempt says about its endpoint.
#[derive(Clone, Debug)]
pub(super) enum Health {
    /// It works.
    Well,
    /// It is there, and wants no question for a while.
    Pause(Duration, String),
    /// It did not answer as it should.
    Stumbled(String),
    /// It is not there.
    Gone(String),
    /// It does not want us.
    Refused(String),
}

/// Why no endpoint can be had.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NoEndpoint {
    /// The run was stopped.
    Stopped,
    /// Nothing can be hoped for: the reasons, one for each endpoint that gave one.
    Hopeless(Vec<(usize, String)>),
}

#[derive(Clone, Default)]
struct State {
    in_flight: usize,
    taken: u64,
    failures: u32,
    /// Attempts in a row without an answer, those after which it asked for a pause among them.
    unanswered: u32,
    not_before: Option<Instant>,
    refused: bool,
    answered: bool,
    last_error: Option<String>,
}

impl State {
    fn rests(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|then| then > now)
    }

    /// Whether a question may be sent to it now. After a rest, one trial at a time.
    fn is_free(&self, now: Instant) -> bool {
        !self.refused && !self.rests(now) && (self.failures < REST_AFTER || self.in_flight == 0)
    }
}

struct Inner {
    states: Vec<State>,
    stopped: bool,
    /// When an endpoint last answered; the start of the run at first.
    well: Instant,
}

impl Inner {
    /// Those that did not refuse us.
    fn open(&self) -> impl Iterator<Item = &State> {
        self.states.iter().filter(|state| !state.refused)
    }

    /// Whether nothing can be hoped for: nobody is left, or nobody has answered for `outage`, several times asked, and no
    /// question is under way.
    fn is_hopeless(&self, now: Instant, outage: Duration) -> bool {
        let silent = |state: &State| state.failures.max(state.unanswered) >= REST_AFTER && state.in_flight == 0;
        self.open().next().is_none() || (self.open().all(silent) && now.duration_since(self.well) >= outage)
    }
}

/// The endpoints of a run, by number.
pub(super) struct Pool {
    inner: Mutex<Inner>,
    changed: Condvar,
    rest: Duration,
    outage: Duration,
}

impl Pool {
    /// `rest` is the first rest of a dead endpoint; without any sign of life for `outage` the pool gives up.
    pub fn new(count: usize, rest: Duration, outage: Duration) -> Self {
        let inner = Inner { states: vec![State::default(); count], stopped: false, well: Instant::now() };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), rest, outage }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new run begins: the outage counts from now.
    pub fn start(&self) {
        let mut inner = self.lock();
        inner.stopped = false;
        inner.well = Instant::now();
    }

    /// Wakes everybody who waits and lets nobody take an endpoint any more.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for an endpoint, rather another one than `last`.
    pub fn take(&self, last: Option<usize>) -> Result<usize, NoEndpoint> {
        let mut inner = self.lock();
        loop {
            if inner.stopped {
                return Err(NoEndpoint::Stopped);
            }
            let now = Instant::now();
            if inner.is_hopeless(now, self.outage) {
                let reasons = inner.states.iter().enumerate();
                return Err(NoEndpoint::Hopeless(
                    reasons.filter_map(|(at, state)| Some((at, state.last_error.clone()?))).collect(),
                ));
            }
            let free = inner.states.iter().enumerate().filter(|(_, state)| state.is_free(now));
            let chosen =
                free.min_by_key(|(at, state)| (Some(*at) == last, state.in_flight, state.taken)).map(|(at, _)| at);
            if let Some(at) = chosen {
                inner.states[at].in_flight += 1;
                inner.states[at].taken += 1;
                return Ok(at);
            }
            let next = inner.open().filter_map(|state| state.not_before).filter(|then| *then > now).min();
            let wait = next.map_or(Duration::from_secs(1), |then| then.duration_since(now));
            inner = self.changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether an endpoint other than this one could be asked at once.
    pub fn has_another(&self, than: usize) -> bool {
        let now = Instant::now();
        self.lock().states.iter().enumerate().any(|(at, state)| at != than && state.is_free(now))
    }

    /// Whether an endpoint has worked in this run.
    pub fn has_answered(&self, at: usize) -> bool {
        self.lock().states[at].answered
    }

    /// Gives an endpoint back, with what was seen of it.
    pub fn give_back(&self, at: usize, health: Health) {
        let mut inner = self.lock();
        let now = Instant::now();
        if matches!(health, Health::Well) {
            inner.well = now;
        }
        let rest = self.rest;
        let state = &mut inner.states[at];
        state.in_flight = state.in_flight.saturating_sub(1);
        match health {
            Health::Well => state.unanswered = 0,
            // Questions that were under way when it wanted a rest say nothing new.
            _ if state.rests(now) => {}
            _ => state.unanswered += 1,
        }
        let mut fail = |said: String, least: u32| {
            state.last_error = Some(said);
            // Questions that were under way when it died say nothing new.
            if !state.rests(now) {
                state.failures = (state.failures + 1).max(least);
            }
            if state.failures >= REST_AFTER && !state.rests(now) {
                let doubled = rest.saturating_mul(1 << (state.failures - REST_AFTER).min(16));
                state.not_before = Some(now + doubled.min(LONGEST_REST.max(rest)));
            }
        };
        match health {
            Health::Well => {
                state.answered = true;
                // A pause that was asked for meanwhile stays.
                if state.failures > 0 {
                    (state.failures, state.not_before) = (0, None);
                }
            }
            Health::Pause(wait, said) => {
                state.last_error = Some(said);
                state.failures = 0;
                state.not_before = state.not_before.max(Some(now + wait));
            }
            Health::Stumbled(said) => fail(said, 0),
            Health::Gone(said) => fail(said, REST_AFTER),
            Health::Refused(said) => {
                state.last_error = Some(said);
                state.refused = true;
            }
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Sleeps, unless the run is stopped meanwhile.
    pub fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut inner = self.lock();
        while !inner.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn questions_are_spread_by_load() {
        let pool = Pool::new(2, LONG, LONG);
        let taken: Vec<usize> = (0..4).map(|_| pool.take(None).expect("endpoint")).collect();
        assert_eq!(taken, [0, 1, 0, 1]);
        // 0 answers faster: it gets the next two.
        pool.give_back(0, Health::Well);
        pool.give_back(0, Health::Well);
        assert_eq!([pool.take(None), pool.take(None)], [Ok(0), Ok(0)]);
        assert_eq!(pool.take(Some(0)), Ok(1), "the other one is preferred after a failure");
    }

    #[test]
    fn a_dead_endpoint_rests_and_gets_one_trial_afterwards() {
        let pool = Pool::new(2, Duration::from_millis(40), LONG);
        assert_eq!(pool.take(None), Ok(0));
        pool.give_back(0, Health::Gone("refused".into()));
        assert!(!pool.has_another(1));
        assert_eq!([pool.take(None), pool.take(None)], [Ok(1), Ok(1)]);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(pool.take(None), Ok(0), "the trial");
        assert_eq!(pool.take(None), Ok(1), "no second trial beside the first");
        pool.give_back(0, Health::Well);
        assert_eq!([pool.take(None), pool.take(None)], [Ok(0), Ok(0)]);
    }

    #[test]
    fn nothing_is_hoped_for_when_all_refuse_or_stay_away() {
        let pool = Pool::new(2, Duration::from_millis(5), Duration::from_millis(30));
        for health in [Health::Refused("HTTP 401".into()), Health::Gone("no host".into())] {
            let at = pool.take(None).expect("endpoint");
            pool.give_back(at, health);
        }
        let reasons = loop {
            match pool.take(None) {
                Ok(at) => pool.give_back(at, Health::Gone("no host".into())),
                Err(NoEndpoint::Hopeless(reasons)) => break reasons,
                Err(NoEndpoint::Stopped) => panic!("nobody stopped it"),
            }
        };
        assert_eq!(reasons, [(0, "HTTP 401".to_string()), (1, "no host".to_string())]);
    }

    #[test]
    fn an_endpoint_that_only_asks_for_pauses_is_given_up_after_the_outage() {
        let outage = Duration::from_millis(60);
        for wait in [Duration::ZERO, Duration::from_millis(10)] {
            let (pool, begun) = (Pool::new(1, LONG, outage), Instant::now());
            let reasons = loop {
                match pool.take(None) {
                    Ok(at) => pool.give_back(at, Health::Pause(wait, "HTTP 503: stopped".into())),
                    Err(NoEndpoint::Hopeless(reasons)) => break reasons,
                    Err(NoEndpoint::Stopped) => panic!("nobody stopped it"),
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert_eq!(reasons, [(0, "HTTP 503: stopped".to_string())]);
            assert!(begun.elapsed() >= outage);
        }
    }

    #[test]
    fn a_pause_is_kept_and_stop_ends_the_wait() {
        let pool = Pool::new(1, LONG, LONG);
        assert_eq!(pool.take(None), Ok(0));
        let begun = Instant::now();
        pool.give_back(0, Health::Pause(Duration::from_millis(50), "HTTP 429".into()));
        assert_eq!(pool.take(None), Ok(0));
        assert!(begun.elapsed() >= Duration::from_millis(50));
        pool.give_back(0, Health::Pause(LONG, "HTTP 429".into()));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.take(None));
            std::thread::sleep(Duration::from_millis(20));
            pool.stop();
            assert_eq!(waiting.join().expect("thread"), Err(NoEndpoint::Stopped));
        });
    }
}
