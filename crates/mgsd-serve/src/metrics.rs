//! Counts and latencies in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency buckets in seconds.
const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// How long something took, counted in buckets.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let count = self.count.load(Relaxed);
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            below += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", count.max(below));
        let _ = writeln!(out, "{name}_sum {}", self.micros.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {}", count.max(below));
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Everything that is counted.
#[derive(Default)]
pub struct Metrics {
    /// Responses by route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Open connections.
    pub connections: AtomicUsize,
    /// Answers that wait for a slot.
    pub waiting: AtomicUsize,
    /// Answers under way.
    pub active: AtomicUsize,
    /// Answers that can be under way at once.
    pub slots: AtomicUsize,
    /// Tokens of prompts whose answers have begun.
    pub prompt_tokens: AtomicU64,
    /// Prompt tokens that were run: fewer where answers shared a prompt.
    pub prefilled_tokens: AtomicU64,
    /// Tokens generated.
    pub generated_tokens: AtomicU64,
    /// Answers that ended by a stop token.
    pub stopped: AtomicU64,
    /// Answers cut at their length.
    pub cut: AtomicU64,
    /// Answers given up because nobody waits for them any more, or a stop string was met.
    pub cancelled: AtomicU64,
    /// Tokens scored against the teacher.
    pub scored_tokens: AtomicU64,
    /// From submission to the slot.
    pub queue_time: Histogram,
    /// From submission to the first token.
    pub first_token_time: Histogram,
    /// From submission to the last token.
    pub answer_time: Histogram,
    /// One step of all answers under way.
    pub step_time: Histogram,
}

impl Metrics {
    /// Counts a response.
    pub fn responded(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *requests.entry((route, status)).or_default() += 1;
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(8192);
        head(&mut out, "mgsd_requests_total", "counter", "Responses by route and HTTP status.");
        {
            let requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for ((route, status), count) in requests.iter() {
                let _ = writeln!(out, "mgsd_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
            }
        }
        for (name, help, value) in [
            ("mgsd_connections", "Open connections.", &self.connections),
            ("mgsd_queue_length", "Answers that wait for a slot.", &self.waiting),
            ("mgsd_active_answers", "Answers under way.", &self.active),
            ("mgsd_slots", "Answers that can be under way at once.", &self.slots),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        for (name, help, value) in [
            ("mgsd_prompt_tokens_total", "Prompt tokens of answers that have begun.", &self.prompt_tokens),
            ("mgsd_prefilled_tokens_total", "Prompt tokens run; shared prompts count once.", &self.prefilled_tokens),
            ("mgsd_generated_tokens_total", "Tokens generated.", &self.generated_tokens),
            ("mgsd_scored_tokens_total", "Tokens scored against the teacher.", &self.scored_tokens),
        ] {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        head(&mut out, "mgsd_answers_total", "counter", "Answers by the way they ended.");
        for (end, value) in [("stop", &self.stopped), ("length", &self.cut), ("cancelled", &self.cancelled)] {
            let _ = writeln!(out, "mgsd_answers_total{{end=\"{end}\"}} {}", value.load(Relaxed));
        }
        self.queue_time.write(&mut out, "mgsd_queue_seconds", "From submission to a slot.");
        self.first_token_time.write(&mut out, "mgsd_first_token_seconds", "From submission to the first token.");
        self.answer_time.write(&mut out, "mgsd_answer_seconds", "From submission to the last token.");
        self.step_time.write(&mut out, "mgsd_step_seconds", "One step of all answers under way.");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_everything_below_their_bound() {
        let metrics = Metrics::default();
        for millis in [1, 3, 3, 700, 90_000] {
            metrics.answer_time.observe(Duration::from_millis(millis));
        }
        metrics.responded("chat", 200);
        metrics.responded("chat", 200);
        let text = metrics.text();
        for line in [
            "mgsd_requests_total{route=\"chat\",status=\"200\"} 2",
            "mgsd_answer_seconds_bucket{le=\"0.001\"} 1",
            "mgsd_answer_seconds_bucket{le=\"0.005\"} 3",
            "mgsd_answer_seconds_bucket{le=\"1\"} 4",
            "mgsd_answer_seconds_bucket{le=\"60\"} 4",
            "mgsd_answer_seconds_bucket{le=\"+Inf\"} 5",
            "mgsd_answer_seconds_count 5",
            "mgsd_answer_seconds_sum 90.707",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
        }
    }
}
