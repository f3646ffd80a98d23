//! Data parallelism: several processes, one a GPU or each with some of the CPU's cores, that share every step.
//!
//! Processes are started by `mgsd launch`, `torchrun --no-python`, `srun` or `mpirun`, whose environment variables say
//! which of how many this is. The steps are the same as those of one process: samples are dealt out by their number, every
//! mean is over all of them, gradients are added up. Files are written by rank 0.

use crate::error::{Result, TrainError};
use mgsd_compute::{Device, Group, Tensor};
use mgsd_model::param::Parameter;
use mgsd_model::reduction::{self, Owners};
use std::sync::Arc;

/// All processes of a run, as one of them sees them.
#[derive(Clone, Default)]
pub struct World {
    group: Option<Arc<Group>>,
}

/// Where one of several processes stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which process, over all machines.
    pub rank: usize,
    /// How many processes.
    pub size: usize,
    /// Which process on this machine: the number of its GPU.
    pub local: usize,
    /// How many processes there are on this machine.
    pub beside: usize,
    /// Where rank 0 is found: `host:port`.
    pub address: String,
}

/// What a starter calls rank, size, rank on this machine and number of processes on this machine.
struct Starter {
    names: [&'static str; 4],
    /// There only if a process was started as one of several: the script of a batch job of Slurm has a rank too.
    sign: &'static str,
}

const STARTERS: [Starter; 3] = [
    Starter { names: ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"], sign: "RANK" },
    Starter {
        names: [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
        sign: "OMPI_COMM_WORLD_RANK",
    },
    Starter {
        names: ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
        sign: "SLURM_STEP_NODELIST",
    },
];

/// The port where processes meet is this much above `MASTER_PORT`, at which torchrun itself listens.
pub const PORT_ABOVE: u16 = 17;
/// `MASTER_PORT` when nobody has set it.
const PORT: u16 = 29_400;

impl Place {
    /// What the environment says; `None`: one process alone. `variable` looks a variable up.
    ///
    /// # Errors
    /// Numbers that are none or contradict each other.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for Starter { names, sign } in STARTERS {
            let [Some(rank), Some(size), local, beside] = names.map(&variable) else { continue };
            if variable(sign).is_none() {
                continue;
            }
            let (rank, size): (usize, usize) = (number(names[0], &rank)?, number(names[1], &size)?);
            let local = local.map_or(Ok(rank), |local| number(names[2], &local))?;
            // Slurm writes 2(x3) for two on each of three machines.
            let beside = beside.as_deref().and_then(|beside| beside.split(['(', ',']).next());
            let beside = beside.map_or(Ok(size), |beside| number(names[3], beside))?.max(1);
            if rank >= size {
                return Err(TrainError::other(names[0].to_string())(format!("is {rank}, but {} is {size}", names[1])));
            }
            if size == 1 {
                return Ok(None);
            }
            return Ok(Some(Self { rank, size, local, beside, address: meeting_point(&variable)? }));
        }
        Ok(None)
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T> {
    let wrong = || {
        TrainError::other(name.to_string())(format!("is {text:?}; expected a whole number, for a port at most 65535"))
    };
    text.trim().parse().map_err(|_| wrong())
}

/// `MASTER_ADDR` and [`PORT_ABOVE`] `MASTER_PORT`. Without them: the first machine of a step of Slurm, else this one, and
/// a port for each job.
fn meeting_point(variable: &impl Fn(&str) -> Option<String>) -> Result<String> {
    let machines =
        || variable("SLURM_STEP_NODELIST").filter(|_| variable("SLURM_STEP_NUM_NODES").as_deref() != Some("1"));
    let host = variable("MASTER_ADDR").or_else(|| machines().map(|list| first_machine(&list)));
    let port = match (variable("MASTER_PORT"), variable("SLURM_JOB_ID")) {
        (Some(port), _) => number("MASTER_PORT", &port)?,
        (None, Some(job)) => PORT + (number::<u64>("SLURM_JOB_ID", &job)? % 1_000) as u16,
        (None, None) => PORT,
    };
    Ok(format!("{}:{}", host.unwrap_or_else(|| "127.0.0.1".into()), port.saturating_add(PORT_ABOVE)))
}

/// `gpu` and its first number, of Slurm's `gpu[07-09,12],login1`.
fn first_machine(list: &str) -> String {
    match list.split_once('[') {
        Some((name, numbers)) if !name.contains(',') => {
            let first: String = numbers.chars().take_while(char::is_ascii_digit).collect();
            name.to_string() + &first
        }
        _ => list.split(',').next().unwrap_or(list).to_string(),
    }
}

impl World {
    /// This process alone.
    pub fn alone() -> Self {
        Self::default()
    }

    /// Joins the others. `device` is this process's own: a GPU for each or the CPU for all.
    ///
    /// # Errors
    /// Who did not come, or does not fit.
    pub fn join(place: &Place, device: Device) -> Result<Self> {
        let Place { rank, size, address, .. } = place;
        let group = Group::join(device, *rank, *size, address);
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

    /// Those of some numbers whose samples are this process's.
    pub fn mine(&self, numbers: std::ops::Range<u64>) -> impl Iterator<Item = u64> + '_ {
        numbers.filter(|number| self.is_mine(*number))
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
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        let found = place(&[&torchrun[..], &[("MASTER_ADDR", "a"), ("MASTER_PORT", "5000")]].concat()).unwrap();
        assert_eq!(found, Some(Place { rank: 3, size: 4, local: 1, beside: 2, address: "a:5017".into() }));
        let slurm = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "6"),
            ("SLURM_STEP_NODELIST", "gpu[07-08,11]"),
            ("SLURM_STEP_NUM_NODES", "3"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let found = place(&slurm).unwrap();
        assert_eq!(found, Some(Place { rank: 1, size: 6, local: 1, beside: 2, address: "gpu07:29873".into() }));
        let found = place(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]).unwrap();
        assert_eq!(found, Some(Place { rank: 1, size: 2, local: 1, beside: 2, address: "127.0.0.1:29417".into() }));
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None, "one process is alone");
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "6")]).unwrap(), None, "the script of a batch job");
        assert_eq!(place(&[]).unwrap(), None);
        let wrong = place(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(wrong.contains("RANK") && wrong.contains('2'), "{wrong}");
        let wrong = place(&[("RANK", "x"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(wrong.contains("RANK") && wrong.contains("\"x\""), "{wrong}");
        let wrong = place(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "-1")]).unwrap_err().to_string();
        assert!(wrong.contains("MASTER_PORT") && wrong.contains("-1"), "{wrong}");
    }

    #[test]
    fn the_first_machine_of_a_list_is_found() {
        for (list, first) in
            [("a", "a"), ("a1,b2", "a1"), ("n[3,5]", "n3"), ("x,n[3-5]", "x"), ("n[007-009],x", "n007")]
        {
            assert_eq!(first_machine(list), first);
        }
    }

    #[test]
    fn alone_everything_is_ones_own() {
        let world = World::alone();
        assert!(world.writes() && (0..5).all(|number| world.is_mine(number)));
        assert_eq!(world.sum([1.0, 2.0]), [1.0, 2.0]);
        assert_eq!(world.max(3.0), 3.0);
    }
}
