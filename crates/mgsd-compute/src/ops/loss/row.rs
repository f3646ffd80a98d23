//! One row of logits.

use super::Divergence;
use super::chunks::Row;
use crate::math::{each_lane, exp};
use crate::par;
use crate::simd::{Simd, kernel};

/// Numbers whose sum is kept in f32; longer sums go on in f64.
const BLOCK: usize = 2048;

/// Log-probability of `target`, entropy, and whether it is the likeliest. The loss is left to the caller.
pub(super) fn stats(logits: &[f32], target: usize) -> Row {
    let highest = highest(logits);
    let (mut sum, mut bent) = (0.0f64, 0.0f64);
    for block in logits.chunks(BLOCK) {
        let (s, b) = exponentials(block, highest);
        sum += f64::from(s);
        bent += f64::from(b);
    }
    let log_sum = sum.ln();
    let lse = f64::from(highest) + log_sum;
    Row {
        loss: 0.0,
        log_prob: (f64::from(logits[target] - highest) - log_sum) as f32,
        entropy: (log_sum - bent / sum) as f32,
        correct: f32::from(u8::from(logits[target] >= highest)),
        lse: lse as f32,
    }
}

/// Logits become `scale * d log p(target) / d logits`.
pub(super) fn log_prob_gradient(logits: &mut [f32], target: usize, scale: f32, row: &Row) {
    probabilities(logits, row.lse, -scale);
    logits[target] += scale;
}

/// The divergence, and with a `weight` its weighted gradient in place of the student's logits.
pub(super) fn divergence(
    kind: Divergence,
    student: &mut [f32],
    teacher: &[f32],
    student_lse: f32,
    teacher_lse: f32,
    weight: Option<f32>,
) -> f32 {
    let mut sum = 0.0f64;
    for (s, t) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
        sum += f64::from(match kind {
            Divergence::ReverseKl => relative(s, t, student_lse, teacher_lse),
            Divergence::ForwardKl => relative(t, s, teacher_lse, student_lse),
            Divergence::Jsd { beta } => {
                let (to_student, to_teacher) = mixed(s, t, student_lse, teacher_lse, beta);
                (1.0 - beta) * to_student + beta * to_teacher
            }
        });
    }
    if let Some(weight) = weight {
        match kind {
            Divergence::ReverseKl => {
                reverse_gradient(student, teacher, student_lse, teacher_lse, sum as f32, weight);
            }
            Divergence::ForwardKl => {
                forward_gradient(student, teacher, student_lse, teacher_lse, weight);
            }
            Divergence::Jsd { beta } => {
                let mut to_student = 0.0f64;
                for (s, t) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
                    to_student += f64::from(mixed(s, t, student_lse, teacher_lse, beta).0);
                }
                let (base, weight) = (to_student as f32, weight * (1.0 - beta));
                mixed_gradient(student, teacher, student_lse, teacher_lse, beta, base, weight);
            }
        }
    }
    sum as f32
}

/// [`divergence`] over the teacher's `k` likeliest tokens (the first ones among equals), both sides renormalised.
pub(super) fn divergence_top(
    kind: Divergence,
    student: &mut [f32],
    teacher: &[f32],
    k: usize,
    weight: Option<f32>,
) -> f32 {
    par::with_scratch(teacher.len() + 2 * k, |scratch| {
        let (order, chosen) = scratch.split_at_mut(teacher.len());
        order.copy_from_slice(teacher);
        let (_, least, _) = order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let least = *least;
        let above = teacher.iter().filter(|x| x.total_cmp(&least).is_gt()).count();
        // Which of the tokens that equal the least are still in.
        let mut equal = k - above;
        let mut is_in = |x: f32| match x.total_cmp(&least) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal if equal > 0 => {
                equal -= 1;
                true
            }
            _ => false,
        };
        let (ours, theirs) = chosen.split_at_mut(k);
        let mut count = 0;
        for (s, t) in student.iter_mut().zip(teacher) {
            if is_in(*t) {
                (ours[count], theirs[count]) = (*s, *t);
                count += 1;
                // Marks the place of a gradient.
                *s = f32::NAN;
            }
        }
        let (our_lse, their_lse) = (stats(ours, 0).lse, stats(theirs, 0).lse);
        let loss = divergence(kind, ours, theirs, our_lse, their_lse, weight);
        let mut gradients = ours.iter();
        for s in student.iter_mut() {
            *s = if s.is_nan() { gradients.next().copied().unwrap_or(0.0) } else { 0.0 };
        }
        loss
    })
}

kernel! {
    fn highest<S>(x: &[f32]) -> f32 {
        let (n, p) = (x.len(), x.as_ptr());
        let mut top = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        // Reads stay below `n`.
        while i + S::LANES <= n {
            top = S::max(top, S::load(p.add(i)));
            i += S::LANES;
        }
        x[i..].iter().copied().fold(S::highest(top), f32::max)
    }
}

/// `Σ f(i)` over vectors of both rows; padding lanes are filled so that they give zero.
macro_rules! sum_lanes {
    ($S:ident, $n:expr, |$a:ident = $pa:ident, $b:ident = $pb:ident| $value:expr) => {{
        let n = $n;
        let mut sum = $S::splat(0.0);
        let mut i = 0;
        // Reads stay below `n`.
        while i < n {
            let left = (n - i).min($S::LANES);
            let ($a, $b) = if left == $S::LANES {
                ($S::load($pa.add(i)), $S::load($pb.add(i)))
            } else {
                (tail::<$S>($pa.add(i), left), tail::<$S>($pb.add(i), left))
            };
            sum = $S::add(sum, $value);
            i += left;
        }
        $S::sum(sum)
    }};
}

/// The first `left` numbers; the rest are logits of probability zero.
#[inline(always)]
unsafe fn tail<S: Simd>(from: *const f32, left: usize) -> S::V {
    let mut buffer = [-1e30f32; 16];
    // SAFETY: `left <= LANES <= 16` numbers are readable (caller).
    unsafe {
        std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), left);
        S::load(buffer.as_ptr())
    }
}

kernel! {
    /// `Σ e^(x - highest)` and `Σ (x - highest) e^(x - highest)`
    fn exponentials<S>(x: &[f32], highest: f32) -> (f32, f32) {
        let shift = S::splat(highest);
        let mut bent = S::splat(0.0);
        let p = x.as_ptr();
        let sum = sum_lanes!(S, x.len(), |x = p, _y = p| {
            let d = S::sub(x, shift);
            let e = exp::<S>(d);
            bent = S::fma(d, e, bent);
            e
        });
        (sum, S::sum(bent))
    }
}

kernel! {
    /// `x = scale * e^(x - lse)`
    fn probabilities<S>(x: &mut [f32], lse: f32, scale: f32) {
        let (n, p) = (x.len(), x.as_mut_ptr());
        let (lse, scale) = (S::splat(lse), S::splat(scale));
        each_lane!(S, n, |x = p| S::mul(scale, exp::<S>(S::sub(x, lse))) => p);
    }
}

kernel! {
    /// `Σ p (log p - log q)` for the distributions of logits `a` and `b`.
    fn relative<S>(a: &[f32], b: &[f32], a_lse: f32, b_lse: f32) -> f32 {
        assert_eq!(a.len(), b.len());
        let (pa, pb) = (a.as_ptr(), b.as_ptr());
        let (a_lse, b_lse) = (S::splat(a_lse), S::splat(b_lse));
        sum_lanes!(S, a.len(), |x = pa, y = pb| {
            let (lp, lq) = (S::sub(x, a_lse), S::sub(y, b_lse));
            S::mul(exp::<S>(lp), S::sub(lp, lq))
        })
    }
}

kernel! {
    /// `weight p (log p - log q - divergence)` in place of the student's logits.
    fn reverse_gradient<S>(student: &mut [f32], teacher: &[f32], s_lse: f32, t_lse: f32, divergence: f32, weight: f32) {
        assert_eq!(student.len(), teacher.len());
        let (n, s, t) = (student.len(), student.as_mut_ptr(), teacher.as_ptr());
        let (s_lse, t_lse) = (S::splat(s_lse), S::splat(t_lse));
        let (divergence, weight) = (S::splat(divergence), S::splat(weight));
        each_lane!(S, n, |x = s, y = t| {
            let (lp, lq) = (S::sub(x, s_lse), S::sub(y, t_lse));
            S::mul(S::mul(weight, exp::<S>(lp)), S::sub(S::sub(lp, lq), divergence))
        } => s);
    }
}

kernel! {
    /// `weight (p - q)` in place of the student's logits.
    fn forward_gradient<S>(student: &mut [f32], teacher: &[f32], s_lse: f32, t_lse: f32, weight: f32) {
        assert_eq!(student.len(), teacher.len());
        let (n, s, t) = (student.len(), student.as_mut_ptr(), teacher.as_ptr());
        let (s_lse, t_lse, weight) = (S::splat(s_lse), S::splat(t_lse), S::splat(weight));
        each_lane!(S, n, |x = s, y = t| {
            S::mul(weight, S::sub(exp::<S>(S::sub(x, s_lse)), exp::<S>(S::sub(y, t_lse))))
        } => s);
    }
}

/// `log(beta e^lq + (1 - beta) e^lp)`, given `[ln(1 - beta), ln(beta)]`, without leaving the logarithms where both vanish.
#[inline(always)]
unsafe fn log_mixture<S: Simd>(lp: S::V, lq: S::V, logs: [S::V; 2]) -> S::V {
    // SAFETY: the instruction set is there (caller).
    unsafe {
        let (a, b) = (S::add(lp, logs[0]), S::add(lq, logs[1]));
        let (high, low) = (S::max(a, b), S::min(a, b));
        // ln(1 + y) = 2 artanh(y / (2 + y)); the argument is at most a third, so its odd series is short.
        let y = exp::<S>(S::sub(low, high));
        let s = S::div(y, S::add(y, S::splat(2.0)));
        let square = S::mul(s, s);
        let mut series = S::splat(2.0 / 15.0);
        for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
            series = S::fma(series, square, S::splat(2.0 / odd));
        }
        S::fma(s, series, high)
    }
}

kernel! {
    /// `Σ p (log p - log m)` and `Σ q (log q - log m)`, `m = beta q + (1 - beta) p`.
    fn mixed<S>(student: &[f32], teacher: &[f32], s_lse: f32, t_lse: f32, beta: f32) -> (f32, f32) {
        assert_eq!(student.len(), teacher.len());
        let (ps, pt) = (student.as_ptr(), teacher.as_ptr());
        let (s_lse, t_lse) = (S::splat(s_lse), S::splat(t_lse));
        let logs = [S::splat((1.0 - beta).ln()), S::splat(beta.ln())];
        let mut to_teacher = S::splat(0.0);
        let to_student = sum_lanes!(S, student.len(), |x = ps, y = pt| {
            let (lp, lq) = (S::sub(x, s_lse), S::sub(y, t_lse));
            let lm = log_mixture::<S>(lp, lq, logs);
            to_teacher = S::fma(exp::<S>(lq), S::sub(lq, lm), to_teacher);
            S::mul(exp::<S>(lp), S::sub(lp, lm))
        });
        (to_student, S::sum(to_teacher))
    }
}

kernel! {
    /// `weight p (log p - log m - base)` in place of the student's logits.
    fn mixed_gradient<S>(student: &mut [f32], teacher: &[f32], s_lse: f32, t_lse: f32, beta: f32, base: f32, weight: f32) {
        assert_eq!(student.len(), teacher.len());
        let (n, s, t) = (student.len(), student.as_mut_ptr(), teacher.as_ptr());
        let (s_lse, t_lse) = (S::splat(s_lse), S::splat(t_lse));
        let logs = [S::splat((1.0 - beta).ln()), S::splat(beta.ln())];
        let (base, weight) = (S::splat(base), S::splat(weight));
        each_lane!(S, n, |x = s, y = t| {
            let (lp, lq) = (S::sub(x, s_lse), S::sub(y, t_lse));
            let lm = log_mixture::<S>(lp, lq, logs);
            S::mul(S::mul(weight, exp::<S>(lp)), S::sub(S::sub(lp, lm), base))
        } => s);
    }
}
