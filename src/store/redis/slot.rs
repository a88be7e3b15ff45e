//! The slots of a Redis Cluster: each key is in one of them, and each of them is on one server at a time. As the
//! "Redis cluster specification" has it.

/// How many there are: what a slot has of the bits of a CRC.
pub(super) const SLOTS: u16 = 1 << TURNS.len();

/// The slot of `@@@@`, and how the letters of a text of this kind change with each bit of its slot: four bits for each
/// letter, `@` to `O`, the first one on the left. A CRC is linear, so each bit of it is a sum (XOR) of bits of the text,
/// and the other way around.
const START: u16 = 0x3639;
const TURNS: [u16; 14] =
    [0x1AFA, 0x06ED, 0x277B, 0x110C, 0x2A91, 0x39C0, 0x1F63, 0x277F, 0x1104, 0x2208, 0x1BEA, 0x04CD, 0x233B, 0x198C];

/// The slot of what stands between the braces of a key's name: its CRC-16/XMODEM.
pub(super) fn of(tag: &str) -> u16 {
    let step = |crc: u16, byte: u8| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    };
    tag.bytes().fold(0, step) % SLOTS
}

/// A text that is in a slot.
pub(super) fn tag(slot: u16) -> String {
    let turned = TURNS.iter().enumerate().filter(|(bit, _)| (slot ^ START) >> bit & 1 == 1);
    let letters = turned.fold(0, |letters, (_, turn)| letters ^ turn);
    [12, 8, 4, 0].iter().filter_map(|place| char::from_u32(u32::from('@') + u32::from(letters >> place & 15))).collect()
}

#[cfg(test)]
mod tests {
    use super::{SLOTS, of, tag};

    #[test]
    fn slots_are_those_of_the_specification() {
        // Its test vector is 0x31C3 for "123456789"; the others are what CLUSTER KEYSLOT answers.
        for (text, slot) in [("123456789", 0x31C3), ("foo", 12_182), ("user1000", 3_443), ("", 0)] {
            assert_eq!(of(text), slot % SLOTS, "{text}");
        }
    }

    #[test]
    fn every_slot_has_a_tag() {
        for slot in 0..SLOTS {
            let tag = tag(slot);
            assert_eq!(of(&tag), slot, "{tag}");
            assert!(tag.len() == 4 && tag.bytes().all(|byte| (b'@'..=b'O').contains(&byte)), "{tag}");
        }
    }
}
