//! TensorBoard event files: TFRecord framing around the `Event` message, scalars only.

use std::io::Write;

/// CRC-32C (Castagnoli), the checksum of TFRecord.
fn crc32c(bytes: &[u8]) -> u32 {
    // Event records are some dozen bytes; the bitwise form is fast enough and needs no table.
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// TFRecord stores checksums rotated and shifted, so that a checksum over checksums stays sound.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Field header: number and wire type.
fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    key(&mut out, 1, 1);
    out.extend_from_slice(&wall_time.to_le_bytes());
    key(&mut out, 2, 0);
    varint(&mut out, step);
    out
}

fn record(out: &mut impl Write, payload: &[u8]) -> std::io::Result<()> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked(&length).to_le_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&masked(payload).to_le_bytes());
    out.write_all(&frame)
}

/// The record every event file begins with.
pub(crate) fn write_header(out: &mut impl Write, wall_time: f64) -> std::io::Result<()> {
    let mut payload = event(wall_time, 0);
    bytes_field(&mut payload, 3, b"brain.Event:2");
    record(out, &payload)
}

/// One event with all scalars of a step.
pub(crate) fn write_scalars<'a>(
    out: &mut impl Write,
    wall_time: f64,
    step: u64,
    scalars: impl Iterator<Item = (&'a str, f64)>,
) -> std::io::Result<()> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut item = Vec::new();
        bytes_field(&mut item, 1, tag.as_bytes());
        key(&mut item, 2, 5);
        item.extend_from_slice(&(value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &item);
    }
    let mut payload = event(wall_time, step);
    bytes_field(&mut payload, 5, &summary);
    record(out, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_scalar_record_has_the_frame_and_fields_of_the_format() {
        let mut out = Vec::new();
        write_scalars(&mut out, 1.5, 300, [("loss", 0.25)].into_iter()).unwrap();
        let length = u64::from_le_bytes(out[..8].try_into().unwrap()) as usize;
        assert_eq!(out.len(), 8 + 4 + length + 4);
        let payload = &out[12..12 + length];
        let mut expected = vec![0x09];
        expected.extend_from_slice(&1.5f64.to_le_bytes());
        expected.extend_from_slice(&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4, b'l', b'o', b's', b's', 0x15]);
        expected.extend_from_slice(&0.25f32.to_le_bytes());
        assert_eq!(payload, expected);
        assert_eq!(out[12 + length..], masked(payload).to_le_bytes());
    }
}
