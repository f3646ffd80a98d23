//! Several processes that work together: GPUs over NCCL, CPUs over sockets.

mod meet;
mod ring;

use std::time::Duration;

pub use meet::free_port;

use meet::Seat;
use ring::Ring;

use crate::cuda::Communicator;
use crate::{Device, Tensor};

/// One process's place among all.
///
/// The processes must ask for the same things in the same order, with as many tensors of the same shapes at a time.
/// When one of them dies the others end with a message as soon as they miss it.
pub struct Group {
    rank: usize,
    size: usize,
    way: Way,
}

/// How the processes talk.
enum Way {
    Nccl(Communicator),
    Sockets(Ring),
}

/// How long the other processes are waited for at the start.
const PATIENCE: Duration = Duration::from_secs(300);

impl Group {
    /// Joins `size` processes, each on a device of the same kind. The process of rank 0 listens at `address`
    /// (`host:port`) and tells the others how to find each other.
    pub fn join(device: Device, rank: usize, size: usize, address: &str) -> Result<Self, String> {
        let seat = Seat { rank, size, address, patience: PATIENCE };
        let way = match device {
            Device::Cpu => Way::Sockets(Ring::join(seat)?),
            Device::Cuda(gpu) => {
                Communicator::present()?;
                let mine = if rank == 0 { Communicator::new_id()? } else { Vec::new() };
                let members = meet::meet(seat, "nccl", &mine)?;
                Way::Nccl(Communicator::join(gpu, rank, size, &members[0].brings)?)
            }
        };
        Ok(Self { rank, size, way })
    }

    /// This process, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Begins to make every tensor its sum over all processes, the same bits everywhere; between GPUs beside the work
    /// that is asked for next. Until [`finish`](Self::finish) nobody may use the tensors.
    pub fn start_all_reduce<'a>(&self, tensors: impl IntoIterator<Item = &'a mut Tensor>) {
        match &self.way {
            Way::Nccl(communicator) => communicator.start_all_reduce(tensors),
            Way::Sockets(ring) => ring.all_reduce(tensors),
        }
    }

    /// The same, but every tensor becomes its sum at the process that owns it only; elsewhere its contents are lost.
    pub fn start_reduce<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        match &self.way {
            Way::Nccl(communicator) => communicator.start_reduce(tensors),
            Way::Sockets(ring) => ring.reduce(tensors),
        }
    }

    /// What is asked for from now on comes after all that was started.
    pub fn finish(&self) {
        match &self.way {
            Way::Nccl(communicator) => communicator.finish(),
            Way::Sockets(_) => {}
        }
    }

    /// Every tensor becomes what it is at the process that owns it.
    pub fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        match &self.way {
            Way::Nccl(communicator) => communicator.broadcast(tensors),
            Way::Sockets(ring) => ring.broadcast(tensors),
        }
    }

    /// Sums of numbers on the host over all processes; also makes all wait for each other.
    pub fn sum(&self, numbers: &mut [f64]) {
        match &self.way {
            Way::Nccl(communicator) => communicator.sum(numbers),
            Way::Sockets(ring) => ring.sum(numbers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of `size` processes makes of its group.
    fn among<T: Send>(size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        std::thread::scope(|scope| {
            let (address, work) = (&address, &work);
            let start = |rank| scope.spawn(move || work(Group::join(Device::Cpu, rank, size, address).unwrap()));
            let all: Vec<_> = (0..size).map(start).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    /// Sizes below, at and beyond the number of processes, what a socket takes at once, and a piece.
    const SIZES: [usize; 6] = [1, 3, 7, 5_000, 300_000, 0];

    fn tensors(rank: usize) -> Vec<Tensor> {
        let number = |i: usize| (i % 251) as f32 + 1000.0 * rank as f32;
        SIZES.iter().map(|&size| Tensor::from_vec(1, size, (0..size).map(number).collect())).collect()
    }

    /// Small whole numbers, so that sums are exact in any order.
    fn sum(size: usize, i: usize) -> f32 {
        (0..size).map(|rank| (i % 251) as f32 + 1000.0 * rank as f32).sum()
    }

    fn holds(tensor: &Tensor, number: impl Fn(usize) -> f32) -> bool {
        tensor.to_vec().iter().enumerate().all(|(i, &value)| value == number(i))
    }

    #[test]
    fn sums_and_copies_reach_everybody() {
        for size in [1, 2, 3, 5] {
            among(size, |group| {
                let mut all = tensors(group.rank());
                group.start_all_reduce(&mut all);
                group.finish();
                assert!(all.iter().all(|tensor| holds(tensor, |i| sum(size, i))), "all_reduce, {size}");

                let mut all = tensors(group.rank());
                group.start_reduce(all.iter_mut().enumerate().map(|(index, tensor)| (tensor, index % size)));
                group.finish();
                let mut mine = all.iter().enumerate().filter(|(index, _)| index % size == group.rank());
                assert!(mine.all(|(_, tensor)| holds(tensor, |i| sum(size, i))), "reduce, {size}");

                let mut all = tensors(group.rank());
                group.broadcast(all.iter_mut().enumerate().map(|(index, tensor)| (tensor, index % size)));
                let from = |owner: usize, i: usize| (i % 251) as f32 + 1000.0 * owner as f32;
                let mut each = all.iter().enumerate();
                assert!(each.all(|(index, tensor)| holds(tensor, |i| from(index % size, i))), "broadcast, {size}");

                let mut numbers = [group.rank() as f64, 1.0, f64::NAN];
                group.sum(&mut numbers);
                assert_eq!(numbers[..2], [(size * (size - 1) / 2) as f64, size as f64]);
                assert!(numbers[2].is_nan());
            });
        }
    }

    #[test]
    fn everybody_gets_the_same_bits() {
        let sums = among(3, |group| {
            let number = |i: usize| ((i * 7 + group.rank() * 13) as f32).sin() / 3.0;
            let mut tensor = Tensor::from_vec(1, 10_000, (0..10_000).map(number).collect());
            group.start_all_reduce([&mut tensor]);
            tensor.to_vec()
        });
        assert!(sums.iter().all(|one| *one == sums[0]));
    }

    #[test]
    fn who_is_gone_is_missed_by_name() {
        let said = among(2, |group| {
            if group.rank() == 1 {
                return None;
            }
            let missed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                loop {
                    group.sum(&mut [1.0]);
                }
            }));
            missed.err().and_then(|why| why.downcast::<String>().ok())
        });
        let said = said[0].as_ref().unwrap();
        assert!(said.starts_with("process of rank 1 is gone") && said.contains("--resume"), "{said}");
    }
}
