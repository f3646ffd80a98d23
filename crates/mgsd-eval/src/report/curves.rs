//! Training curves as SVG line charts with axes.

use std::fmt::Write as _;

use super::data::{Curve, ReportData};
use super::html::{escape, section};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Beyond this many points a line is drawn faintly, with its running mean over it.
const SMOOTH_FROM: usize = 60;
/// No line has more points than this on the page.
const MOST_POINTS: usize = 600;

/// All charts; nothing without curves.
pub fn render(out: &mut String, data: &ReportData) {
    let curves: Vec<&Curve> =
        data.curves.iter().filter(|curve| curve.series.iter().any(|series| !series.points.is_empty())).collect();
    if curves.is_empty() {
        return;
    }
    section(
        out,
        "training",
        "Training",
        "Faint lines are the values of single steps, strong lines their running mean.",
    );
    out.push_str("<div class=\"charts\">");
    for curve in curves {
        let _ = write!(out, "<figure class=\"panel\"><figcaption><h3>{}</h3>", escape(&curve.title));
        if curve.series.len() > 1 {
            out.push_str("<p class=\"legend\">");
            for (index, series) in curve.series.iter().enumerate() {
                let _ = write!(out, "<span class=\"s{}\">{}</span>", index % 4, escape(&series.label));
            }
            out.push_str("</p>");
        }
        out.push_str("</figcaption>");
        chart(out, curve);
        out.push_str("</figure>");
    }
    out.push_str("</div></section>");
}

/// A linear or logarithmic axis between two values.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn share(&self, value: f64) -> f64 {
        let (low, high, value) =
            if self.log { (self.low.ln(), self.high.ln(), value.ln()) } else { (self.low, self.high, value) };
        if high > low { (value - low) / (high - low) } else { 0.5 }
    }

    /// Round values within the axis: 1, 2 or 5 times a power of ten apart, or the powers of ten.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let count = powers.clone().count();
            let steps: &[f64] = if count <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            return powers
                .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
                .filter(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick))
                .collect();
        }
        let step = round_step((self.high - self.low) / 4.0);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|tick| tick as f64 * step).collect()
    }
}

fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-12).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * power >= rough * 0.999);
    step.unwrap_or(10.0) * power
}

fn tick_label(value: f64, percent: bool) -> String {
    if percent {
        return format!("{} %", (value * 100.0).round());
    }
    let size = value.abs();
    if size >= 10_000.0 && value % 1000.0 == 0.0 {
        return format!("{}k", value / 1000.0);
    }
    if size != 0.0 && size < 0.001 {
        return format!("{value:e}");
    }
    // Sums of steps such as 0.1 + 0.2 carry dust in the last digits.
    format!("{}", (value * 1e6).round() / 1e6)
}

fn axes(curve: &Curve) -> Option<(Axis, Axis)> {
    let points = || {
        let all = curve.series.iter().flat_map(|series| &series.points);
        all.filter(|[x, y]| x.is_finite() && y.is_finite() && (!curve.log_y || *y > 0.0))
    };
    let range = |at: usize| {
        points().map(|point| point[at]).fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        })
    };
    let ((x_low, x_high), (y_low, y_high)) = (range(0)?, range(1)?);
    let y = if curve.percent {
        Axis { low: 0.0, high: 1.0, log: false }
    } else if curve.log_y {
        Axis { low: y_low, high: y_high.max(y_low * 1.5), log: true }
    } else {
        let low = if y_low >= 0.0 { 0.0 } else { y_low };
        let step = round_step((y_high - low) / 4.0);
        Axis { low: (low / step).floor() * step, high: ((y_high / step).ceil() * step).max(low + step), log: false }
    };
    Some((Axis { low: if x_low < x_high * 0.1 { 0.0 } else { x_low }, high: x_high, log: false }, y))
}

fn chart(out: &mut String, curve: &Curve) {
    let Some((x_axis, y_axis)) = axes(curve) else { return };
    let x_at = |x: f64| LEFT + x_axis.share(x) * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| HEIGHT - BOTTOM - y_axis.share(y).clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM);
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><g class=\"grid\">",
        escape(&spoken(curve))
    );
    for tick in y_axis.ticks() {
        let y = y_at(tick);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            tick_label(tick, curve.percent)
        );
    }
    for tick in x_axis.ticks() {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x_at(tick),
            HEIGHT - BOTTOM + 16.0,
            tick_label(tick, false)
        );
    }
    let _ = write!(
        out,
        "</g><text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - 3.0,
        escape(&curve.x_label)
    );
    for (index, series) in curve.series.iter().enumerate() {
        let usable = |[x, y]: &&[f64; 2]| x.is_finite() && y.is_finite() && (!curve.log_y || *y > 0.0);
        let points: Vec<[f64; 2]> = series.points.iter().filter(usable).copied().collect();
        let points = thinned(&points);
        let draw = |points: &[[f64; 2]], class: &str| {
            let mut path = String::new();
            for (at, [x, y]) in points.iter().enumerate() {
                let command = if at == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", x_at(*x), y_at(*y));
            }
            format!("<path class=\"s{} {class}\" d=\"{path}\"/>", index % 4)
        };
        if points.len() > SMOOTH_FROM {
            out.push_str(&draw(&points, "raw"));
            out.push_str(&draw(&smoothed(&points), "line"));
        } else {
            out.push_str(&draw(&points, "line"));
            for [x, y] in points.iter().filter(|_| points.len() <= 25) {
                let (x, y) = (x_at(*x), y_at(*y));
                let _ = write!(out, "<circle class=\"s{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>", index % 4);
            }
        }
    }
    let _ = write!(out, "</svg><p class=\"y-label\">{}</p>", escape(&curve.y_label));
}

fn spoken(curve: &Curve) -> String {
    let mut text = format!("{}, {} over {}.", curve.title, curve.y_label, curve.x_label);
    for series in &curve.series {
        let mut values = series.points.iter().map(|point| point[1]).filter(|y| y.is_finite());
        if let Some(first) = values.next() {
            let last = values.next_back().unwrap_or(first);
            let _ = write!(text, " {}: from {first:.3} to {last:.3}.", series.label);
        }
    }
    text
}

/// At most [`MOST_POINTS`] points: means over equal runs of neighbours.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let run = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |run: &[[f64; 2]]| {
        let sum = run.iter().fold([0.0; 2], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
        sum.map(|sum| sum / run.len() as f64)
    };
    points.chunks(run).map(mean).collect()
}

/// The mean over a window centred on each point, shorter at the ends.
fn smoothed(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let reach = (points.len() / 40).max(2);
    (0..points.len())
        .map(|at| {
            let reach = reach.min(at).min(points.len() - 1 - at);
            let window = &points[at - reach..=at + reach];
            [points[at][0], window.iter().map(|point| point[1]).sum::<f64>() / window.len() as f64]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let ticks = |low, high, log| Axis { low, high, log }.ticks();
        assert_eq!(ticks(0.0, 1.0, false), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks(0.0, 150.0, false), [0.0, 50.0, 100.0, 150.0]);
        assert_eq!(ticks(0.001, 10.0, true).len(), 5);
    }

    #[test]
    fn a_long_line_is_thinned_without_moving_its_mean() {
        let points: Vec<[f64; 2]> = (0..6000).map(|step| [f64::from(step), f64::from(step % 7)]).collect();
        let short = thinned(&points);
        assert_eq!(short.len(), MOST_POINTS);
        let mean = |points: &[[f64; 2]]| points.iter().map(|point| point[1]).sum::<f64>() / points.len() as f64;
        assert!((mean(&points) - mean(&short)).abs() < 1e-9);
    }

    #[test]
    fn points_that_are_not_numbers_are_left_out() {
        let series =
            super::super::data::Series { label: "loss".into(), points: vec![[0.0, f64::NAN], [1.0, 2.0], [2.0, 1.0]] };
        let data = ReportData {
            curves: vec![Curve { title: "Loss".into(), series: vec![series], ..Curve::default() }],
            ..ReportData::default()
        };
        let mut out = String::new();
        render(&mut out, &data);
        assert!(out.contains("<path") && !out.contains("NaN"), "{out}");
    }
}
