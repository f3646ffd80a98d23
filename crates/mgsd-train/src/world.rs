//! Data parallelism: as many processes as GPUs, each with a share of every step.
//!
//! Processes are started by `mgsd launch`, `torchrun --no-python`, `srun` or `mpirun`, whose environment variables say
//! which of how many this is. The steps are the same as those of one process: samples are dealt out by their number, every
//! mean is over all of them, gradients are added up. Files are written by rank 0.

use crate::error::{Result, TrainError};
use crate::metrics::Scalars;
use mgsd_compute::cuda::Group;
use mgsd_compute::{Device, Tensor};
use mgsd_model::param::Parameter;
use mgsd_model::reduction::{self, Owners};
use std::sync::Arc;

/// All processes of a run, as one of them sees them.
#[derive(Clone, Default)]
pub struct World {
    group: Option<Arc<Group>>,
}

/// Where one of several processes stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which process, over all machines.
    pub rank: usize,
    /// How many processes.
    pub size: usize,
    /// Which process on this machine: the number of its GPU.
    pub local: usize,
}

/// Names of the variables: rank, size, rank on this machine.
const VARIABLES: [[&str; 3]; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

/// The port where processes meet is this much above `MASTER_PORT`, at which torchrun itself listens.
pub const PORT_ABOVE: u16 = 17;

impl Place {
    /// What the environment says; `None`: one process alone. `variable` looks a variable up.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for names in VARIABLES {
            let [Some(rank), Some(size), local] = names.map(&variable) else { continue };
            let number = |name: &str, text: &str| {
                let wrong = || TrainError::other(name.to_string())(format!("is {text:?}; expected a number"));
                text.trim().parse::<usize>().map_err(|_| wrong())
            };
            let (rank, size) = (number(names[0], &rank)?, number(names[1], &size)?);
            let local = local.map_or(Ok(rank), |local| number(names[2], &local))?;
            if rank >= size {
                return Err(TrainError::other(names[0].to_string())(format!("is {rank}, but {} is {size}", names[1])));
            }
            return Ok((size > 1).then_some(Self { rank, size, local }));
        }
        Ok(None)
    }
}

impl World {
    /// This process alone.
    pub fn alone() -> Self {
        Self::default()
    }

    /// Joins the others that the environment tells of, if there are any. `device` is this process's GPU.
    pub fn join(place: Option<Place>, device: Device) -> Result<Self> {
        let Some(place) = place else { return Ok(Self::alone()) };
        let Device::Cuda(gpu) = device else {
            return Err(TrainError::other("data parallelism")(format!(
                "{} processes were started, but the device is the CPU; use --device cuda, or start one process",
                place.size
            )));
        };
        let host = std::env::var("MASTER_ADDR").unwrap_or_else(|_| "127.0.0.1".into());
        let port = std::env::var("MASTER_PORT").ok().and_then(|port| port.parse::<u16>().ok()).unwrap_or(29_400);
        let address = format!("{host}:{}", port.saturating_add(PORT_ABOVE));
        let group = Group::join(gpu, place.rank, place.size, &address);
        let group = group.map_err(|why| TrainError::other("data parallelism")(why))?;
        Ok(Self { group: Some(Arc::new(group)) })
    }

    /// The other processes, if there are any.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_deref()
    }

    /// This process, counted from 0.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, |group| group.rank())
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.group.as_ref().map_or(1, |group| group.size())
    }

    /// Whether this process writes the files.
    pub fn writes(&self) -> bool {
        self.rank() == 0
    }

    /// Whether the sample of this number is this process's.
    pub fn is_mine(&self, number: u64) -> bool {
        number % self.size() as u64 == self.rank() as u64
    }

    /// Sums over all processes. All wait for each other here.
    pub fn sum<const COUNT: usize>(&self, mut numbers: [f64; COUNT]) -> [f64; COUNT] {
        if let Some(group) = &self.group {
            group.sum(&mut numbers);
        }
        numbers
    }

    /// The largest over all processes.
    pub fn max(&self, number: f64) -> f64 {
        let Some(group) = &self.group else { return number };
        let mut all = vec![0.0; group.size()];
        all[group.rank()] = number;
        group.sum(&mut all);
        all.into_iter().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Means over all processes of the scalars of these names, each weighing `weight` here if it is there.
    pub fn average(&self, scalars: &mut Scalars, names: &[&'static str], weight: f64) {
        let Some(group) = &self.group else { return };
        let pair = |name: &&str| scalars.get(name).map_or([0.0, 0.0], |value| [value * weight, weight]);
        let mut sums: Vec<f64> = names.iter().flat_map(pair).collect();
        group.sum(&mut sums);
        for (name, sum) in names.iter().zip(sums.chunks_exact(2)) {
            if sum[1] > 0.0 {
                scalars.set(name, sum[0] / sum[1]);
            }
        }
    }

    /// Begins to make the gradients of a piece their sum over all processes; with `owners` each at its owner only.
    /// Nobody may use them until [`finish`](Self::finish).
    pub fn start_adding_up(&self, piece: &mut [&mut Parameter], owners: Option<&Owners>) {
        if let Some(group) = &self.group {
            reduction::start(group, piece, owners);
        }
    }

    /// What is asked of this process's GPU from now on finds the sums.
    pub fn finish(&self) {
        if let Some(group) = &self.group {
            group.finish();
        }
    }

    /// Every tensor becomes what it is at its owner.
    pub fn share<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        if let Some(group) = &self.group {
            group.broadcast(tensors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pairs: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from_environment(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn the_place_comes_from_whoever_started_the_process() {
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")];
        assert_eq!(place(&torchrun).unwrap(), Some(Place { rank: 3, size: 4, local: 1 }));
        let slurm = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")];
        assert_eq!(place(&slurm).unwrap(), Some(Place { rank: 1, size: 2, local: 1 }));
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None, "one process is alone");
        assert_eq!(place(&[]).unwrap(), None);
        let wrong = place(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(wrong.contains("RANK") && wrong.contains('2'), "{wrong}");
        let wrong = place(&[("RANK", "x"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(wrong.contains("RANK") && wrong.contains("\"x\""), "{wrong}");
    }

    #[test]
    fn alone_everything_is_ones_own() {
        let world = World::alone();
        assert!(world.writes() && (0..5).all(|number| world.is_mine(number)));
        assert_eq!(world.sum([1.0, 2.0]), [1.0, 2.0]);
        assert_eq!(world.max(3.0), 3.0);
    }
}
