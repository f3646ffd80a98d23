//! How the processes of a group find each other: all tell rank 0, rank 0 tells all.

use std::io::{Error, ErrorKind, Read, Result as IoResult, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Who and where a process is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat<'a> {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// `host:port`, where rank 0 listens.
    pub(super) address: &'a str,
    /// How long the others are waited for.
    pub(super) patience: Duration,
}

/// What a process has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Where the others reach it.
    pub(super) host: String,
    /// What it has brought.
    pub(super) brings: Vec<u8>,
}

/// A port that nobody listens at, and that the system does not give to those who ask for any.
pub fn free_port() -> std::io::Result<u16> {
    /// Below the ports that systems give away.
    const PORTS: Range<u16> = 20_000..32_000;
    static ASKED: AtomicU16 = AtomicU16::new(0);
    // Others who look at the same time begin elsewhere.
    let begin = std::process::id().wrapping_mul(7_919) as usize;
    let mut last = Error::from(ErrorKind::AddrInUse);
    for _ in PORTS {
        let next = begin + usize::from(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + (next % PORTS.len()) as u16;
        match TcpListener::bind(("0.0.0.0", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A message longer than this is not one of ours.
const LONGEST: usize = 1 << 16;
/// How long somebody may take to say a sentence.
const BREATH: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What everybody has brought, by rank. `kind` must be the same for all: it says how the group will talk.
pub(super) fn meet(seat: Seat, kind: &str, brings: &[u8]) -> Result<Vec<Member>, String> {
    let Seat { rank, size, .. } = seat;
    assert!(rank < size, "rank {rank} of {size} processes");
    if rank == 0 { receive(seat, kind, brings) } else { visit(seat, kind, brings) }
}

/// Rank 0.
fn receive(seat: Seat, kind: &str, brings: &[u8]) -> Result<Vec<Member>, String> {
    let Seat { size, address, patience, .. } = seat;
    let (host, port) = address.rsplit_once(':').ok_or_else(|| format!("{address:?} is not host:port"))?;
    let failed = |what: &str, error: Error| format!("rank 0 cannot {what} at port {port}: {error}; set MASTER_PORT");
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).map_err(|error| failed("listen", error))?;
    let mut members: Vec<Option<Member>> = vec![None; size];
    members[0] = Some(Member { host: host.into(), brings: brings.to_vec() });
    let mut visitors = Vec::with_capacity(size);
    let deadline = Instant::now() + patience;
    let outcome = loop {
        let missing: Vec<usize> = (0..size).filter(|&rank| members[rank].is_none()).collect();
        if missing.is_empty() {
            break Ok(());
        }
        let Some((mut stream, from)) = accept(&listener, deadline).map_err(|error| failed("listen", error))? else {
            break Err(format!("of {size} processes those of rank {missing:?} did not come to {address}"));
        };
        // Whoever does not speak as we do is somebody else's guest.
        let Ok((greeting, theirs)) = hear(&mut stream) else { continue };
        let wrong = match parse(&greeting) {
            None => continue,
            Some((rank, their_size, _)) if their_size != size || rank >= size => {
                format!("rank {rank} came for {their_size} processes, rank 0 for {size}")
            }
            Some((rank, _, theirs)) if theirs != kind => {
                format!("rank {rank} computes on {theirs}, rank 0 on {kind}; use the same --device for all")
            }
            Some((rank, ..)) if members[rank].is_some() => format!("rank {rank} came twice"),
            Some((rank, ..)) => {
                if put(&mut stream, HERE).is_err() {
                    continue;
                }
                // A process of this machine is reached by the name of the machine.
                let host = if from.is_loopback() { host.into() } else { from.to_string() };
                members[rank] = Some(Member { host, brings: theirs });
                visitors.push(stream);
                continue;
            }
        };
        visitors.push(stream);
        break Err(format!("{wrong}; two runs need a MASTER_PORT each"));
    };
    let members: Vec<Member> = members.into_iter().flatten().collect();
    for stream in &mut visitors {
        // Who cannot be told any more is missed by everybody soon enough.
        let _ = match &outcome {
            Ok(()) => tell_all(stream, &members),
            Err(why) => put(stream, &[NO, why.as_bytes()].concat()),
        };
    }
    outcome.map(|()| members)
}

/// The others: knock until rank 0 is there, then wait for everybody.
fn visit(seat: Seat, kind: &str, brings: &[u8]) -> Result<Vec<Member>, String> {
    let Seat { rank, address, patience, .. } = seat;
    let deadline = Instant::now() + patience;
    let mut stream = loop {
        match knock(seat, kind, brings) {
            Ok(Ok(stream)) => break stream,
            Ok(Err(why)) => return Err(why),
            Err(error) if Instant::now() > deadline => {
                return Err(format!(
                    "rank {rank} does not reach rank 0 at {address}: {error}; check MASTER_ADDR and MASTER_PORT"
                ));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    let lost = |error: Error| format!("rank {rank} was not answered by rank 0 at {address}: {error}");
    // Rank 0 waits as long for those who are still missing.
    let answer = stream.set_read_timeout(Some(patience + BREATH)).and_then(|()| get(&mut stream)).map_err(lost)?;
    if let Some(why) = answer.strip_prefix(NO) {
        return Err(String::from_utf8_lossy(why).into_owned());
    }
    let member = |stream: &mut TcpStream| {
        Ok(Member { host: String::from_utf8_lossy(&get(stream)?).into_owned(), brings: get(stream)? })
    };
    (0..seat.size).map(|_| member(&mut stream)).collect::<IoResult<_>>().map_err(lost)
}

/// Greets whoever is there. An error: it is not rank 0, or nobody; otherwise what rank 0 thinks of it.
fn knock(seat: Seat, kind: &str, brings: &[u8]) -> IoResult<Result<TcpStream, String>> {
    let mut stream = TcpStream::connect(seat.address)?;
    put(&mut stream, format!("mgsd {} {} {kind}", seat.rank, seat.size).as_bytes())?;
    put(&mut stream, brings)?;
    stream.set_read_timeout(Some(BREATH))?;
    let answer = get(&mut stream)?;
    match answer.strip_prefix(NO) {
        Some(why) => Ok(Err(String::from_utf8_lossy(why).into_owned())),
        None if answer == HERE => Ok(Ok(stream)),
        None => Err(Error::new(ErrorKind::InvalidData, "somebody else answers there")),
    }
}

/// What rank 0 says to who fits, when all are there, and before why not.
const HERE: &[u8] = b"here";
const WELCOME: &[u8] = b"welcome";
const NO: &[u8] = b"no: ";

/// Rank, size and kind of a greeting.
fn parse(greeting: &[u8]) -> Option<(usize, usize, &str)> {
    let mut words = std::str::from_utf8(greeting).ok()?.splitn(4, ' ');
    (words.next()? == "mgsd").then_some(())?;
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?))
}

fn hear(stream: &mut TcpStream) -> IoResult<(Vec<u8>, Vec<u8>)> {
    stream.set_read_timeout(Some(BREATH))?;
    Ok((get(stream)?, get(stream)?))
}

fn tell_all(stream: &mut TcpStream, members: &[Member]) -> IoResult<()> {
    put(stream, WELCOME)?;
    members.iter().try_for_each(|member| {
        put(stream, member.host.as_bytes())?;
        put(stream, &member.brings)
    })
}

/// The next connection and whence it comes; `None` when nobody comes until `deadline`.
pub(super) fn accept(listener: &TcpListener, deadline: Instant) -> IoResult<Option<(TcpStream, IpAddr)>> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some((stream, from.ip())));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Ok(None);
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A message: its length in four bytes, then itself.
pub(super) fn put(stream: &mut TcpStream, message: &[u8]) -> IoResult<()> {
    let length = u32::try_from(message.len()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(message)
}

/// The reverse of [`put`].
pub(super) fn get(stream: &mut TcpStream) -> IoResult<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(Error::new(ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    fn seat(rank: usize, size: usize, address: &str, patience: Duration) -> Seat<'_> {
        Seat { rank, size, address, patience }
    }

    fn free() -> String {
        format!("127.0.0.1:{}", free_port().unwrap())
    }

    #[test]
    fn everybody_learns_what_everybody_brings() {
        let address = free();
        let all: Vec<Vec<Member>> = std::thread::scope(|scope| {
            let address = &address;
            let join = |rank: usize| {
                scope.spawn(move || {
                    meet(seat(rank, 3, address, Duration::from_secs(30)), "cpu", &[rank as u8; 5]).unwrap()
                })
            };
            let all: Vec<_> = [2, 0, 1].map(join).into();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for members in &all {
            assert_eq!(members, &all[0]);
            assert!(members.iter().enumerate().all(|(rank, member)| member.brings == [rank as u8; 5]));
            assert!(members.iter().all(|member| member.host == "127.0.0.1"));
        }
    }

    #[test]
    fn who_is_missing_is_said() {
        let why = meet(seat(0, 3, &free(), SHORT), "cpu", &[]).unwrap_err();
        assert!(why.contains("[1, 2]"), "{why}");
        let why = meet(seat(1, 2, &free(), SHORT), "cpu", &[]).unwrap_err();
        assert!(why.contains("rank 1") && why.contains("MASTER_ADDR"), "{why}");
    }

    /// What both say when rank 1 comes as `greeting` to rank 0 of two on the CPU.
    fn misfits(greeting: &str) -> [String; 2] {
        let address = free();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| meet(seat(0, 2, &address, Duration::from_secs(30)), "cpu", &[]).unwrap_err());
            let mut stream = loop {
                if let Ok(stream) = TcpStream::connect(&address) {
                    break stream;
                }
            };
            put(&mut stream, greeting.as_bytes()).unwrap();
            put(&mut stream, &[]).unwrap();
            let told = String::from_utf8(get(&mut stream).unwrap()).unwrap();
            [first.join().unwrap(), told.strip_prefix("no: ").unwrap().into()]
        })
    }

    #[test]
    fn who_does_not_fit_is_turned_away_and_all_hear_why() {
        for (greeting, word) in [("mgsd 1 4 cpu", "4 processes"), ("mgsd 1 2 nccl", "nccl"), ("mgsd 0 2 cpu", "twice")]
        {
            let [here, there] = misfits(greeting);
            assert_eq!(here, there);
            assert!(here.contains(word), "{here}");
        }
    }

    #[test]
    fn somebody_else_at_the_address_is_not_rank_0() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                get(&mut stream).unwrap();
                put(&mut stream, b"220 mail.example").unwrap();
                drop(listener);
            });
            let why = meet(seat(1, 2, &address, SHORT), "cpu", &[]).unwrap_err();
            assert!(why.contains("does not reach rank 0"), "{why}");
        });
    }

    #[test]
    fn strangers_are_not_counted() {
        let address = free();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| meet(seat(0, 2, &address, Duration::from_secs(30)), "cpu", &[7]).unwrap());
            let mut stranger = loop {
                if let Ok(stream) = TcpStream::connect(&address) {
                    break stream;
                }
            };
            stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let second = meet(seat(1, 2, &address, Duration::from_secs(30)), "cpu", &[8]).unwrap();
            assert_eq!(second, first.join().unwrap());
        });
    }
}
