//! Which boards are kept for evaluation: decided by what is on the board, so that no stage trains on one of them
//! whatever seed, folder or order it came from.

/// One board in this many is held out.
pub const HELD_OUT_ONE_IN: u64 = 10;

/// Whether the board with this canonical key (`mgsd_tasks::Board::key`) belongs to the evaluation boards.
pub fn held_out(board_key: &str) -> bool {
    hash(board_key.as_bytes()).is_multiple_of(HELD_OUT_ONE_IN)
}

/// FNV-1a (64 bit) with SplitMix64's finaliser.
///
/// Without the finaliser the lowest bit of FNV-1a is the parity of the bytes' lowest bits, which every FrozenLake
/// map of one size shares: all of them would be even, or all odd, and the remainder would not split them evenly.
fn hash(bytes: &[u8]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in bytes {
        state ^= u64::from(byte);
        state = state.wrapping_mul(0x0000_0100_0000_01b3);
    }
    state ^= state >> 30;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 27;
    state = state.wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_never_changes() {
        // Checkpoints and reports of older runs stay comparable only if these values do.
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"frozenlake"), 5_412_603_665_559_569_430);
    }

    #[test]
    fn a_tenth_of_keys_with_the_same_byte_parity_is_held_out() {
        let mut held = 0;
        for number in 0..20_000u32 {
            let key: String = (0..16).map(|bit| if number >> bit & 1 == 1 { 'H' } else { 'F' }).collect();
            held += usize::from(held_out(&key));
        }
        assert!((1_850..2_150).contains(&held), "{held} of 20,000");
    }
}
