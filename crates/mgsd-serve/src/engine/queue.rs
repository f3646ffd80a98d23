//! Who is served next: the address with the fewest requests under way, and of its users the one with the fewest.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Whom a request comes from. A user is whoever the request says (`user`), and shares what its address gets: naming
/// many users brings nobody a larger share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The peer's address.
    pub address: IpAddr,
    /// The request's `user`, or nothing.
    pub user: String,
}

/// How much is under way, and when something was last begun.
#[derive(Clone, Copy, Default)]
struct Share {
    running: usize,
    last: u64,
}

struct Lane<T> {
    waiting: VecDeque<T>,
    share: Share,
}

/// Waiting requests by client.
pub struct FairQueue<T> {
    lanes: HashMap<Client, Lane<T>>,
    addresses: HashMap<IpAddr, Share>,
    begun: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), addresses: HashMap::new(), begun: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Puts a request at the end of its client's lane.
    pub fn push(&mut self, client: &Client, item: T) {
        self.addresses.entry(client.address).or_default();
        let lane = self.lanes.entry(client.clone());
        lane.or_insert_with(|| Lane { waiting: VecDeque::new(), share: Share::default() }).waiting.push_back(item);
    }

    /// Takes the next request and counts it as under way until [`finished`](Self::finished).
    pub fn pop(&mut self) -> Option<(Client, T)> {
        let waiting = self.lanes.iter().filter(|(_, lane)| !lane.waiting.is_empty());
        let client = waiting
            .min_by_key(|(client, lane)| {
                let address = self.addresses.get(&client.address).copied().unwrap_or_default();
                (address.running, address.last, client.address, lane.share.running, lane.share.last)
            })
            .map(|(client, _)| client.clone())?;
        self.begun += 1;
        let address = self.addresses.entry(client.address).or_default();
        let lane = self.lanes.get_mut(&client)?;
        for share in [address, &mut lane.share] {
            share.running += 1;
            share.last = self.begun;
        }
        let item = lane.waiting.pop_front()?;
        Some((client, item))
    }

    /// One request of this client, taken before, is no longer under way.
    pub fn finished(&mut self, client: &Client) {
        if let Some(lane) = self.lanes.get_mut(client) {
            lane.share.running = lane.share.running.saturating_sub(1);
        }
        if let Some(address) = self.addresses.get_mut(&client.address) {
            address.running = address.running.saturating_sub(1);
        }
        self.forget(client);
    }

    /// Takes waiting requests of a client out that `chosen` picks.
    pub fn remove(&mut self, client: &Client, chosen: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        if let Some(lane) = self.lanes.get_mut(client) {
            let (out, stay) = lane.waiting.drain(..).partition(|item| chosen(item));
            lane.waiting = stay;
            removed.extend::<VecDeque<T>>(out);
        }
        self.forget(client);
        removed
    }

    /// Drops what is known of a client that has nothing here any more, so that old clients cost no memory.
    fn forget(&mut self, client: &Client) {
        let idle = |lane: &Lane<T>| lane.waiting.is_empty() && lane.share.running == 0;
        if self.lanes.get(client).is_some_and(idle) {
            self.lanes.remove(client);
            if !self.lanes.keys().any(|other| other.address == client.address) {
                self.addresses.remove(&client.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8, user: &str) -> Client {
        Client { address: IpAddr::from([10, 0, 0, last]), user: user.into() }
    }

    #[test]
    fn a_client_with_one_request_does_not_wait_behind_another_with_many() {
        let mut queue = FairQueue::default();
        for i in 0..5 {
            queue.push(&client(1, ""), i);
        }
        assert_eq!(queue.pop().map(|(_, i)| i), Some(0));
        assert_eq!(queue.pop().map(|(_, i)| i), Some(1));
        queue.push(&client(2, ""), 100);
        queue.push(&client(2, ""), 101);
        let next: Vec<i32> = std::iter::from_fn(|| queue.pop()).map(|(_, i)| i).collect();
        assert_eq!(next, [100, 101, 2, 3, 4]);
    }

    #[test]
    fn naming_many_users_brings_an_address_no_larger_share() {
        let mut queue = FairQueue::default();
        for i in 0..6 {
            queue.push(&client(1, &format!("user {i}")), i);
            queue.push(&client(2, ""), 100 + i);
        }
        let first: Vec<i32> = std::iter::from_fn(|| queue.pop()).take(6).map(|(_, i)| i).collect();
        assert_eq!(first.iter().filter(|i| **i >= 100).count(), 3, "{first:?}");
    }

    #[test]
    fn users_of_one_address_take_turns() {
        let mut queue = FairQueue::default();
        for i in 0..4 {
            queue.push(&client(1, "a"), i);
        }
        queue.push(&client(1, "b"), 100);
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).map(|(_, i)| i).collect();
        assert!(order.iter().position(|i| *i == 100) <= Some(1), "{order:?}");
    }

    #[test]
    fn clients_that_are_through_are_forgotten() {
        let mut queue = FairQueue::default();
        queue.push(&client(1, ""), 1);
        queue.push(&client(1, ""), 2);
        assert_eq!(queue.remove(&client(1, ""), |i| *i == 1), [1]);
        let (who, _) = queue.pop().expect("one is left");
        queue.finished(&who);
        assert!(queue.lanes.is_empty() && queue.addresses.is_empty());
    }
}
