//! The slots of a Redis Cluster: each key is in one of them, and each of them is on one server at a time. As the
//! "Redis cluster specification" has it.

/// How many there are.
pub(super) const SLOTS: u16 = 16_384;

/// What tags are made of.
const LETTERS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

/// CRC-16/XMODEM by bytes.
const CRC: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

const fn step(crc: u16, byte: u8) -> u16 {
    crc << 8 ^ CRC[(crc >> 8) as usize ^ byte as usize]
}

/// The slot of what stands between the braces of a key's name.
pub(super) fn of(tag: &str) -> u16 {
    tag.bytes().fold(0, step) % SLOTS
}

/// For each slot some text of three letters that is in it.
pub(super) fn tags() -> Vec<String> {
    let mut tags = vec![String::new(); SLOTS.into()];
    let mut left = tags.len();
    all(|slot, tag| {
        let place = &mut tags[usize::from(slot)];
        if place.is_empty() {
            place.extend(tag.map(char::from));
            left -= 1;
        }
        left > 0
    });
    tags
}

/// The first of these texts that is in a slot.
pub(super) fn tag(slot: u16) -> String {
    let mut found = String::new();
    all(|other, tag| {
        if other == slot {
            found.extend(tag.map(char::from));
        }
        other != slot
    });
    found
}

/// Goes through all texts of three letters until `take` has enough.
fn all(mut take: impl FnMut(u16, [u8; 3]) -> bool) {
    for first in LETTERS {
        let one = step(0, *first);
        for second in LETTERS {
            let two = step(one, *second);
            for third in LETTERS {
                if !take(step(two, *third) % SLOTS, [*first, *second, *third]) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SLOTS, of, tag, tags};

    #[test]
    fn slots_are_those_of_the_specification() {
        // Its test vector is 0x31C3 for "123456789"; the others are what CLUSTER KEYSLOT answers.
        for (text, slot) in [("123456789", 0x31C3), ("foo", 12_182), ("user1000", 3_443), ("", 0)] {
            assert_eq!(of(text), slot % SLOTS, "{text}");
        }
    }

    #[test]
    fn every_slot_has_a_tag_which_is_the_same_for_all() {
        for (slot, text) in (0..SLOTS).zip(tags()) {
            assert_eq!(of(&text), slot);
            assert_eq!(text.len(), 3);
            if slot % 1000 == 0 {
                assert_eq!(tag(slot), text);
            }
        }
    }
}
