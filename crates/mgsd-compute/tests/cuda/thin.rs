//! The thin products of adapters, by their kernel and where it is not for the shapes, and that its bits repeat.

use super::{Case, Numbers, gpu};
use mgsd_compute::ops::linear::{LowRank, thin};
use mgsd_compute::{Device, Dtype, Tensor};

/// Rows, columns, adapters, rank. Of the first four rows the last stretch has no 64, and of columns the last tile no 256; the
/// last four are not for the kernel as they stand.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (1270, 2560, 3, 8),
    (700, 264, 2, 8),
    (4100, 520, 1, 16),
    (513, 1032, 1, 24),
    (600, 72, 2, 16),
    (200, 256, 3, 8),
    (600, 520, 1, 40),
    (600, 520, 1, 4),
];

fn each<'a>(tensors: &'a mut [Tensor], others: &'a [Tensor]) -> Vec<(&'a mut Tensor, &'a Tensor)> {
    tensors.iter_mut().zip(others).collect()
}

fn adapters<'a>(lows: &'a mut [Tensor], a: &'a [Tensor]) -> Vec<(&'a mut Tensor, LowRank<'a>)> {
    let scales = [2.0, 0.5, 3.0];
    lows.iter_mut().zip(a).zip(scales).map(|((low, a), scale)| (low, LowRank { a, b: a, scale })).collect()
}

#[test]
fn first_halves_and_their_gradients() {
    let Some((device, _turn)) = gpu("first_halves_and_their_gradients") else { return };
    let mut n = Numbers(60);
    for case in Case::both(device) {
        for (rows, columns, sets, rank) in SHAPES {
            let what = |form: &str, set: usize| format!("{form} {set} of {sets}, [{rows}, {columns}], rank {rank}");
            let (x, xg) = case.pair(n.tensor(rows, columns, 1.0));
            let (a, ag): (Vec<_>, Vec<_>) = (0..sets).map(|_| case.pair(n.tensor(rank, columns, 0.1))).unzip();
            let empty = || (0..sets).map(|_| Tensor::empty()).collect::<Vec<_>>();
            let (mut lows, mut lows_g) = (empty(), empty());
            thin::begin(&mut adapters(&mut lows, &a), &x);
            thin::begin(&mut adapters(&mut lows_g, &ag), &xg);
            for set in 0..sets {
                case.near(&what("low", set), &lows[set], &lows_g[set], 2e-6, 4e-3);
            }
            let (dlow, dlow_g): (Vec<_>, Vec<_>) = (0..sets).map(|_| case.pair(n.tensor(rows, rank, 1.0))).unzip();
            let (mut da, mut da_g): (Vec<_>, Vec<_>) =
                (0..sets).map(|_| case.exact(n.tensor(rank, columns, 3.0))).unzip();
            let zeros =
                |device| (0..sets).map(|_| Tensor::zeros_on(device, Dtype::F32, rank, columns)).collect::<Vec<_>>();
            let mut fresh = [zeros(device), zeros(device)];
            for fresh in &mut fresh {
                thin::gradients(&mut each(fresh, &dlow_g), &xg);
            }
            let mut alone = zeros(Device::Cpu);
            thin::gradients(&mut each(&mut alone, &dlow), &x);
            thin::gradients(&mut each(&mut da, &dlow), &x);
            thin::gradients(&mut each(&mut da_g, &dlow_g), &xg);
            for set in 0..sets {
                case.near(&what("da", set), &alone[set], &fresh[0][set], 5e-6, 5e-6);
                case.near(&what("da, added", set), &da[set], &da_g[set], 5e-6, 5e-6);
                assert!(fresh[0][set].to_vec() == fresh[1][set].to_vec(), "{}: other bits again", what("da", set));
            }
        }
    }
}

#[test]
fn second_halves_back() {
    let Some((device, _turn)) = gpu("second_halves_back") else { return };
    let mut n = Numbers(61);
    for case in Case::both(device) {
        for (rows, columns, _, rank) in SHAPES {
            let what = |form: &str| format!("{form} [{rows}, {columns}], rank {rank}");
            let (dy, dyg) = case.pair(n.tensor(rows, columns, 1.0));
            let (b, bg) = case.pair(n.tensor(columns, rank, 0.1));
            let (low, low_g) = case.pair(n.tensor(rows, rank, 1.0));
            let (mut db, mut db_g) = case.exact(n.tensor(columns, rank, 3.0));
            let [mut dlow, mut dlow_g, mut again] = [(); 3].map(|()| Tensor::empty());
            let of = |b| LowRank { a: b, b, scale: 2.0 };
            let mut fresh = Tensor::zeros_on(device, Dtype::F32, columns, rank);
            thin::back(&mut again, Some(&mut fresh), &dyg, &low_g, of(&bg));
            thin::back(&mut dlow, Some(&mut db), &dy, &low, of(&b));
            thin::back(&mut dlow_g, Some(&mut db_g), &dyg, &low_g, of(&bg));
            case.near(&what("dlow"), &dlow, &dlow_g, 2e-6, 4e-3);
            case.near(&what("db"), &db, &db_g, 5e-6, 5e-6);
            assert!(dlow_g.to_vec() == again.to_vec(), "{}: other bits again", what("dlow"));
            let mut alone = Tensor::zeros(columns, rank);
            thin::back(&mut dlow, Some(&mut alone), &dy, &low, of(&b));
            case.near(&what("db from zero"), &alone, &fresh, 5e-6, 5e-6);
            // A frozen b.
            thin::back(&mut dlow_g, None, &dyg, &low_g, of(&bg));
            case.near(&what("dlow of a frozen b"), &dlow, &dlow_g, 2e-6, 4e-3);
        }
    }
}
