//! Losses against plain f64 formulas, their differences, and PyTorch's numbers.

mod common;

use common::{Numbers, bf16, close, dot, plus, same, slope, tensor};
use mgsd_compute::Tensor;
use mgsd_compute::ops::adamw::{self, AdamW};
use mgsd_compute::ops::loss::{self, Clip, Divergence, Grads, Teacher, TokenStats};

const CLIP: Clip = Clip { low: 0.2, high: 0.3, dual: 3.0 };

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::MIN, f64::max);
    let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - lse).collect()
}

fn project(hidden: &[f64], head: &[f64], width: usize) -> Vec<Vec<f64>> {
    hidden.chunks(width).map(|h| head.chunks(width).map(|w| dot(h, w)).collect()).collect()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn divergence(kind: Divergence, student: &[f64], teacher: &[f64], top_k: Option<usize>) -> f64 {
    let (mut s, mut t) = (student.to_vec(), teacher.to_vec());
    if let Some(k) = top_k {
        let mut order: Vec<usize> = (0..t.len()).collect();
        order.sort_by(|a, b| teacher[*b].total_cmp(&teacher[*a]));
        s = order[..k].iter().map(|i| student[*i]).collect();
        t = order[..k].iter().map(|i| teacher[*i]).collect();
    }
    let (s, t) = (log_softmax(&s), log_softmax(&t));
    match kind {
        Divergence::ReverseKl => kl(&s, &t),
        Divergence::ForwardKl => kl(&t, &s),
        Divergence::Jsd { beta } => {
            let b = f64::from(beta);
            let pairs = s.iter().zip(&t);
            let m: Vec<f64> = pairs.map(|(s, t)| (b * t.exp() + (1.0 - b) * s.exp()).ln()).collect();
            b * kl(&t, &m) + (1.0 - b) * kl(&s, &m)
        }
    }
}

struct Case {
    rows: usize,
    width: usize,
    vocab: usize,
    hidden: Vec<f64>,
    head: Vec<f64>,
    targets: Vec<u32>,
    weights: Vec<f64>,
}

impl Case {
    fn new(seed: u64, rows: usize, width: usize, vocab: usize) -> Self {
        let mut numbers = Numbers::new(seed);
        Self {
            rows,
            width,
            vocab,
            hidden: numbers.vec(rows * width),
            head: numbers.vec(vocab * width),
            targets: (0..rows).map(|_| numbers.below(vocab) as u32).collect(),
            weights: numbers.vec(rows),
        }
    }

    fn weights(&self) -> Vec<f32> {
        self.weights.iter().map(|w| *w as f32).collect()
    }

    /// Runs `ours` on both dtypes of the head, and compares value and gradients with those of `plain`, which gets all logits.
    fn check(
        &self,
        name: &str,
        ours: impl Fn(&Tensor, &Tensor, Option<Grads>) -> f64,
        plain: impl Fn(&[Vec<f64>]) -> f64,
    ) {
        let hidden = tensor(self.rows, self.width, &self.hidden);
        let (mapped, cut) = bf16(self.vocab, self.width, &self.head);
        for (head, w) in [(tensor(self.vocab, self.width, &self.head), &self.head), (mapped, &cut)] {
            let value = |h: &[f64], w: &[f64]| plain(&project(h, w, self.width));
            let want = value(&self.hidden, w);
            let close_enough = |got: f64| (got - want).abs() < 1e-5 * want.abs().max(1.0);
            let got = ours(&hidden, &head, None);
            assert!(close_enough(got), "{name}: got {got}, want {want}");
            let mut dhidden = Tensor::empty();
            let mut dhead = tensor(self.vocab, self.width, &self.head);
            let grads = Grads { dhidden: &mut dhidden, dhead: Some(&mut dhead) };
            let got = ours(&hidden, &head, Some(grads));
            assert!(close_enough(got), "{name}: got {got}, want {want}");
            same(name, &dhidden, &slope(&self.hidden, |h| value(h, w)), 2e-5);
            let dw = slope(w, |w| value(&self.hidden, w));
            same(name, &dhead, &plus(&self.head, &dw), 2e-5);
        }
    }
}

#[test]
fn cross_entropy_and_its_gradients_match_f64() {
    for (seed, rows, width, vocab) in [(1, 5, 7, 19), (2, 9, 3, 16), (3, 1, 4, 40)] {
        let case = Case::new(seed, rows, width, vocab);
        case.check(
            "cross entropy",
            |hidden, head, grads| {
                let mut stats = TokenStats::default();
                loss::cross_entropy(&mut stats, hidden, head, &case.targets, &case.weights(), grads)
            },
            |logits| {
                let rows = logits.iter().zip(&case.targets).zip(&case.weights);
                rows.map(|((z, t), w)| -w * log_softmax(z)[*t as usize]).sum()
            },
        );
    }
}

#[test]
fn divergences_and_their_gradients_match_f64_exact_and_on_the_teachers_top() {
    let case = Case::new(4, 5, 4, 21);
    let teacher = Case::new(5, 5, 6, 21);
    let theirs = project(&teacher.hidden, &teacher.head, 6);
    let (their_hidden, their_head) = (tensor(5, 6, &teacher.hidden), tensor(21, 6, &teacher.head));
    let kinds =
        [Divergence::ReverseKl, Divergence::ForwardKl, Divergence::Jsd { beta: 0.5 }, Divergence::Jsd { beta: 0.1 }];
    for kind in kinds {
        for top_k in [None, Some(6), Some(1), Some(50)] {
            case.check(
                &format!("{kind:?} {top_k:?}"),
                |hidden, head, grads| {
                    let (mut stats, mut log_prob) = (TokenStats::default(), Vec::new());
                    let teacher = Teacher { hidden: &their_hidden, head: &their_head, top_k };
                    let (targets, weights) = (&case.targets, case.weights());
                    let sum = loss::distill(
                        &mut stats,
                        &mut log_prob,
                        kind,
                        hidden,
                        head,
                        &teacher,
                        targets,
                        &weights,
                        grads,
                    );
                    for (i, got) in log_prob.iter().enumerate() {
                        let want = log_softmax(&theirs[i])[targets[i] as usize];
                        assert!((f64::from(*got) - want).abs() < 1e-5, "teacher: {got}, want {want}");
                    }
                    sum
                },
                |logits| {
                    let rows = logits.iter().zip(&theirs).zip(&case.weights);
                    rows.map(|((s, t), w)| w * divergence(kind, s, t, top_k.filter(|k| *k < 21))).sum()
                },
            );
        }
    }
}

#[test]
fn the_clipped_policy_gradient_matches_f64_in_every_branch() {
    let case = Case::new(6, 12, 4, 9);
    let logits = project(&case.hidden, &case.head, 4);
    // Ratios far inside the branches, so that no difference crosses a kink.
    let ratios = [1.1, 0.5, 1.8, 5.0, 1.05, 0.4, 1.9, 6.0, 1.0, 0.9, 2.0, 4.0];
    let advantage: Vec<f64> = (0..12).map(|i| if i % 3 == 0 { 0.7 } else { -0.9 }).collect();
    let old: Vec<f64> =
        (0..12).map(|i| log_softmax(&logits[i])[case.targets[i] as usize] - f64::ln(ratios[i])).collect();
    let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let token = |log_prob: f64, i: usize| {
        let (a, ratio) = (advantage[i], (log_prob - old[i]).exp());
        let loss = (-a * ratio).max(-a * ratio.clamp(0.8, 1.3));
        if a < 0.0 { loss.min(-3.0 * a) } else { loss }
    };
    let check_one = |weights: Vec<f32>| {
        let hidden = tensor(12, 4, &case.hidden);
        let head = tensor(9, 4, &case.head);
        let value = |h: &[f64]| -> f64 {
            let rows = project(h, &case.head, 4);
            (0..12).map(|i| f64::from(weights[i]) * token(log_softmax(&rows[i])[case.targets[i] as usize], i)).sum()
        };
        let (mut stats, mut dhidden) = (TokenStats::default(), Tensor::empty());
        let grads = Grads { dhidden: &mut dhidden, dhead: None };
        let got = loss::policy_gradient(
            &mut stats,
            CLIP,
            &hidden,
            &head,
            &case.targets,
            &narrow(&old),
            &narrow(&advantage),
            &weights,
            Some(grads),
        );
        let want = value(&case.hidden);
        assert!((got - want).abs() < 1e-4, "got {got}, want {want}");
        same("dhidden", &dhidden, &slope(&case.hidden, value), 3e-5);
    };
    check_one(case.weights());
}

#[test]
fn statistics_over_many_chunks_of_a_large_vocabulary_match_f64() {
    let case = Case::new(7, 70, 3, 40_000);
    let (hidden, head) = (tensor(70, 3, &case.hidden), tensor(40_000, 3, &case.head));
    let mut stats = TokenStats::default();
    loss::log_probs(&mut stats, &hidden, &head, &case.targets);
    let logits = project(&case.hidden, &case.head, 3);
    let (mut log_prob, mut entropy) = (Vec::new(), Vec::new());
    for (i, z) in logits.iter().enumerate() {
        let lp = log_softmax(z);
        log_prob.push(lp[case.targets[i] as usize]);
        entropy.push(-lp.iter().map(|l| l * l.exp()).sum::<f64>());
        let best = lp.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(stats.correct[i], lp[case.targets[i] as usize] >= best);
    }
    close("log_prob", &stats.log_prob, &log_prob, 1e-6);
    close("entropy", &stats.entropy, &entropy, 1e-6);
    let mut dhidden = Tensor::empty();
    let grads = Grads { dhidden: &mut dhidden, dhead: None };
    loss::cross_entropy(&mut stats, &hidden, &head, &case.targets, &case.weights(), Some(grads));
    let want: Vec<f64> = (0..70)
        .flat_map(|i| {
            let p: Vec<f64> = log_softmax(&logits[i]).iter().map(|l| l.exp()).collect();
            let (case, target) = (&case, case.targets[i] as usize);
            (0..3).map(move |d| {
                let mean: f64 = p.iter().zip(case.head.chunks(3)).map(|(p, w)| p * w[d]).sum();
                case.weights[i] * (mean - case.head[target * 3 + d])
            })
        })
        .collect();
    same("dhidden", &dhidden, &want, 1e-5);
}

#[test]
fn the_argmax_is_correct_and_only_it() {
    let head = tensor(3, 1, &[1.0, 3.0, 2.0]);
    let hidden = tensor(3, 1, &[1.0, 1.0, -1.0]);
    let mut stats = TokenStats::default();
    loss::log_probs(&mut stats, &hidden, &head, &[1, 2, 0]);
    assert_eq!(stats.correct, [true, false, true]);
}

/// PyTorch's logits, tokens and losses of two responses.
struct Stored(Vec<u8>);

impl Stored {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/distill.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    /// The entries of valid tokens.
    fn get(&self, name: &str) -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let read = |name: &str| -> Vec<f64> {
            let view = file.tensor(name).unwrap();
            match view.dtype() {
                safetensors::Dtype::I64 => {
                    let words = view.data().chunks_exact(8);
                    words.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
                }
                _ => {
                    let words = view.data().chunks_exact(4);
                    words.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
                }
            }
        };
        let (mask, all) = (read("response_mask"), read(name));
        if name == "losses" {
            return all;
        }
        let each = all.len() / mask.len();
        let rows = all.chunks(each).zip(&mask).filter(|(_, m)| **m != 0.0);
        rows.flat_map(|(row, _)| row.to_vec()).collect()
    }
}

#[test]
fn pytorchs_distillation_losses_are_reproduced_from_its_logits() {
    let stored = Stored::open();
    let vocab = 600;
    let (student, teacher) = (stored.get("student_logits"), stored.get("teacher_logits"));
    let rows = student.len() / vocab;
    let mut identity = vec![0.0; vocab * vocab];
    (0..vocab).for_each(|i| identity[i * vocab + i] = 1.0);
    let head = tensor(vocab, vocab, &identity);
    let (student, teacher) = (tensor(rows, vocab, &student), tensor(rows, vocab, &teacher));
    let targets: Vec<u32> = stored.get("response_tokens").iter().map(|t| *t as u32).collect();
    let weights = vec![1.0 / rows as f32; rows];
    let losses = stored.get("losses");
    let kinds = [
        (Divergence::ReverseKl, "full_reverse_kl", losses[2]),
        (Divergence::ForwardKl, "full_forward_kl", losses[3]),
        (Divergence::Jsd { beta: 0.5 }, "jsd", losses[4]),
    ];
    for (kind, name, mean) in kinds {
        let (mut stats, mut log_prob) = (TokenStats::default(), Vec::new());
        let teacher = Teacher { hidden: &teacher, head: &head, top_k: None };
        let got = loss::distill(&mut stats, &mut log_prob, kind, &student, &head, &teacher, &targets, &weights, None);
        assert!((got - mean).abs() < 1e-5, "{name}: got {got}, want {mean}");
        close(name, &stats.loss, &stored.get(name), 5e-6);
        close("student_logp", &stats.log_prob, &stored.get("student_logp"), 2e-6);
        close("student_entropy", &stats.entropy, &stored.get("student_entropy"), 2e-6);
        close("teacher_logp", &log_prob, &stored.get("teacher_logp"), 2e-6);
    }
    let narrow = |name| stored.get(name).iter().map(|x| *x as f32).collect::<Vec<_>>();
    let (old, advantage) = (narrow("logp_old"), narrow("pg_advantage"));
    let mut stats = TokenStats::default();
    let mut dhidden = Tensor::empty();
    let grads = Grads { dhidden: &mut dhidden, dhead: None };
    let got =
        loss::policy_gradient(&mut stats, CLIP, &student, &head, &targets, &old, &advantage, &weights, Some(grads));
    assert!((got - losses[0]).abs() < 1e-5, "clipped: got {got}, want {}", losses[0]);
    close("pg_token_loss", &stats.loss, &stored.get("pg_token_loss"), 5e-6);
    let gradient = dhidden.to_vec();
    for (row, branch) in stored.get("pg_branch").into_iter().enumerate() {
        let moves = gradient[row * vocab..(row + 1) * vocab].iter().any(|g| *g != 0.0);
        assert_eq!(moves, branch == 0.0, "row {row}, branch {branch}");
    }
    // On policy the old log-probabilities are the current ones.
    let current = stats.log_prob.clone();
    let pairs = stored.get("teacher_logp").into_iter().zip(&current);
    let advantage: Vec<f32> = pairs.map(|(t, s)| t as f32 - s).collect();
    let got = loss::policy_gradient(&mut stats, CLIP, &student, &head, &targets, &current, &advantage, &weights, None);
    assert!((got - losses[1]).abs() < 1e-5, "on policy: got {got}, want {}", losses[1]);
}

#[test]
fn adamw_follows_its_formula_in_f64_for_five_steps() {
    let n = 1003;
    let mut numbers = Numbers::new(3);
    let mut p = numbers.vec(n);
    let mut param = tensor(1, n, &p);
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let (mut first, mut second) = (Tensor::zeros(1, n), Tensor::zeros(1, n));
    let settings = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    for step in 1..=5 {
        let g = numbers.vec(n);
        adamw::step(&mut param, None, &tensor(1, n, &g), &mut first, &mut second, &settings, step, 0.5);
        for i in 0..n {
            let g = g[i] * 0.5;
            p[i] *= 1.0 - 1e-3 * 0.01;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let floor = (v[i] / (1.0 - 0.999f64.powi(step as i32))).sqrt() + 1e-8;
            p[i] -= 1e-3 / (1.0 - 0.9f64.powi(step as i32)) * m[i] / floor;
        }
        same("param", &param, &p, 3e-7);
        same("first", &first, &m, 3e-7);
        let largest = v.iter().copied().fold(0.0, f64::max);
        let scaled: Vec<f32> = second.to_vec().iter().map(|x| x / largest as f32).collect();
        close("second", &scaled, &v.iter().map(|x| x / largest).collect::<Vec<_>>(), 1e-6);
    }
    let g = numbers.vec(600_001);
    let got = adamw::sum_of_squares([&tensor(1, g.len(), &g)]);
    let want = dot(&g, &g);
    assert!((got / want - 1.0).abs() < 1e-7, "got {got}, want {want}");
}
