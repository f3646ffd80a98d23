//! Sums between CPUs: every process sends to the next one and hears from the one before.
//!
//! A sum over `n` processes goes round in `2 (n - 1)` exchanges of an `n`-th of the numbers each, the least that any way
//! sends (Patarasuk and Yuan, 2009); each part is added up at one process, so that all get the same bits.

use std::io::{Error, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::{AddAssign, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytemuck::Pod;

use super::meet::{self, Seat};
use crate::Tensor;

/// This process's two neighbours.
pub(super) struct Ring {
    rank: usize,
    size: usize,
    links: Mutex<Links>,
}

struct Links {
    next: TcpStream,
    last: TcpStream,
    /// What the neighbour sent.
    heard: Vec<u8>,
    /// Several tensors as one.
    joined: Vec<f32>,
}

/// As much as any socket takes without somebody reading.
const SHORT: usize = 4 << 10;
/// How much goes on to the next process while more is coming from the last.
const PIECE: usize = 1 << 20;

impl Ring {
    pub(super) fn join(seat: Seat) -> Result<Self, String> {
        let Seat { rank, size, patience, .. } = seat;
        let failed = |what: &str, error: Error| format!("rank {rank} cannot {what}: {error}");
        let listener = TcpListener::bind("0.0.0.0:0").map_err(|error| failed("listen", error))?;
        let port = listener.local_addr().map_err(|error| failed("listen", error))?.port();
        let members = meet::meet(seat, "cpu", &port.to_le_bytes())?;
        let neighbour = (rank + 1) % size;
        let host = &members[neighbour].host;
        let port: [u8; 2] = members[neighbour].brings.as_slice().try_into().map_err(|_| "a port of two bytes")?;
        let port = u16::from_le_bytes(port);
        let reach = || {
            let mut next = TcpStream::connect((host.as_str(), port))?;
            next.set_nodelay(true)?;
            meet::put(&mut next, &(rank as u32).to_le_bytes())?;
            Ok(next)
        };
        let next = reach().map_err(|error| failed(&format!("reach rank {neighbour} at {host}:{port}"), error))?;
        let before = (rank + size - 1) % size;
        let deadline = Instant::now() + patience;
        let last = loop {
            let accepted = meet::accept(&listener, deadline).map_err(|error| failed("listen", error))?;
            let (mut stream, _) = accepted.ok_or_else(|| format!("rank {before} did not reach rank {rank}"))?;
            if meet::get(&mut stream).is_ok_and(|name| name == (before as u32).to_le_bytes()) {
                break stream;
            }
        };
        Ok(Self { rank, size, links: Mutex::new(Links { next, last, heard: Vec::new(), joined: Vec::new() }) })
    }

    /// Every tensor becomes its sum over all processes.
    pub(super) fn all_reduce<'a>(&self, tensors: impl IntoIterator<Item = &'a mut Tensor>) {
        let mut links = self.links();
        let mut joined = std::mem::take(&mut links.joined);
        joined.clear();
        let mut tensors: Vec<&mut [f32]> = tensors.into_iter().map(Tensor::as_mut_slice).collect();
        tensors.iter().for_each(|tensor| joined.extend_from_slice(tensor));
        self.round(&mut links, &mut joined);
        let mut rest = joined.as_slice();
        for tensor in &mut tensors {
            let (mine, others) = rest.split_at(tensor.len());
            tensor.copy_from_slice(mine);
            rest = others;
        }
        links.joined = joined;
    }

    /// Sums over all processes.
    pub(super) fn sum(&self, numbers: &mut [f64]) {
        self.round(&mut self.links(), numbers);
    }

    /// Every tensor becomes its sum at its owner; elsewhere it becomes a part of the sum.
    pub(super) fn reduce<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        let mut links = self.links();
        for (tensor, owner) in tensors {
            // From the one after the owner round to the owner.
            let place = (self.rank + self.size - owner - 1) % self.size;
            for piece in tensor.as_mut_slice().chunks_mut(PIECE / size_of::<f32>()) {
                if place > 0 {
                    links.hear(size_of_val(piece), self.before());
                    add(piece, &links.heard);
                }
                if place + 1 < self.size {
                    links.say(bytemuck::cast_slice(piece), self.after());
                }
            }
        }
    }

    /// Every tensor becomes what it is at its owner.
    pub(super) fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        let mut links = self.links();
        for (tensor, owner) in tensors {
            let place = (self.rank + self.size - owner) % self.size;
            for piece in tensor.as_mut_slice().chunks_mut(PIECE / size_of::<f32>()) {
                if place > 0 {
                    links.hear(size_of_val(piece), self.before());
                    bytemuck::cast_slice_mut(piece).copy_from_slice(&links.heard);
                }
                if place + 1 < self.size {
                    links.say(bytemuck::cast_slice(piece), self.after());
                }
            }
        }
    }

    /// Each part is added up on its way round, then the sums go round.
    fn round<T: Pod + AddAssign>(&self, links: &mut Links, numbers: &mut [T]) {
        let (rank, size, count) = (self.rank, self.size, numbers.len());
        let part = |index: usize| -> Range<usize> {
            let index = index % size;
            index * count / size..(index + 1) * count / size
        };
        for turn in 0..size - 1 {
            let (mine, theirs) = (part(rank + size - turn), part(rank + 2 * size - turn - 1));
            self.exchange(links, &numbers[mine], theirs.len());
            add(&mut numbers[theirs], &links.heard);
        }
        for turn in 0..size - 1 {
            let (mine, theirs) = (part(rank + size + 1 - turn), part(rank + size - turn));
            self.exchange(links, &numbers[mine], theirs.len());
            bytemuck::cast_slice_mut(&mut numbers[theirs]).copy_from_slice(&links.heard);
        }
    }

    /// Sends `mine` on while `count` numbers come in, which are in `links.heard` afterwards.
    fn exchange<T: Pod>(&self, links: &mut Links, mine: &[T], count: usize) {
        let (mine, bytes): (&[u8], _) = (bytemuck::cast_slice(mine), count * size_of::<T>());
        if mine.len() <= SHORT {
            links.say(mine, self.after());
            return links.hear(bytes, self.before());
        }
        // Everybody sends at once; who only sent would wait for who only sends.
        let mut next = &links.next;
        let Links { last, heard, .. } = links;
        std::thread::scope(|scope| {
            let sent = scope.spawn(move || next.write_all(mine));
            listen(last, heard, bytes, self.before());
            let sent = sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent.unwrap_or_else(|error| gone(self.after(), &error));
        });
    }

    fn after(&self) -> usize {
        (self.rank + 1) % self.size
    }

    fn before(&self) -> usize {
        (self.rank + self.size - 1) % self.size
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    fn say(&mut self, bytes: &[u8], to: usize) {
        self.next.write_all(bytes).unwrap_or_else(|error| gone(to, &error));
    }

    fn hear(&mut self, bytes: usize, from: usize) {
        listen(&mut self.last, &mut self.heard, bytes, from);
    }
}

fn listen(last: &mut TcpStream, heard: &mut Vec<u8>, bytes: usize, from: usize) {
    heard.resize(bytes, 0);
    last.read_exact(heard).unwrap_or_else(|error| gone(from, &error));
}

/// `numbers += heard`; the bytes may lie anywhere.
fn add<T: Pod + AddAssign>(numbers: &mut [T], heard: &[u8]) {
    for (number, bytes) in numbers.iter_mut().zip(heard.chunks_exact(size_of::<T>())) {
        *number += bytemuck::pod_read_unaligned(bytes);
    }
}

fn gone(rank: usize, error: &Error) -> ! {
    panic!("process of rank {rank} is gone ({error}); continue the run with --resume from its newest checkpoint")
}
