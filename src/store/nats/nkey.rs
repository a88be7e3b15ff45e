//! Nkeys: keys of Ed25519 in base32, with a prefix that says whose they are and a checksum (`strkey.go` of NATS' nkeys).

use std::fmt;

use ring::signature::{Ed25519KeyPair, KeyPair as _};

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// What the keys of users begin with, and seeds of any kind.
const USER: u8 = 20 << 3;
const SEED: u8 = 18 << 3;

/// A user's secret key.
pub(super) struct Seed(Ed25519KeyPair);

impl Seed {
    /// Reads what a file holds.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bytes = decode(text.trim()).ok_or("it is no nkey")?;
        let (body, sum) = bytes.split_at_checked(34).filter(|(_, sum)| sum.len() == 2).ok_or("it is no seed")?;
        if checksum(body).to_le_bytes() != sum {
            return Err("its checksum is wrong".into());
        }
        if body[0] & 0xf8 != SEED || (body[0] & 7) << 5 | body[1] >> 3 != USER {
            return Err("it is not the seed of a user, which begins with 'SU'".into());
        }
        Ed25519KeyPair::from_seed_unchecked(&body[2..]).map(Self).map_err(|_| "it is no seed".into())
    }

    /// The key that others know.
    pub(super) fn public(&self) -> String {
        let mut bytes = vec![USER];
        bytes.extend_from_slice(self.0.public_key().as_ref());
        bytes.extend(checksum(&bytes).to_le_bytes());
        encode(&bytes)
    }

    pub(super) fn sign(&self, words: &[u8]) -> Vec<u8> {
        self.0.sign(words).as_ref().to_vec()
    }
}

/// Without what is secret.
impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({})", self.public())
    }
}

/// CRC-16 as XMODEM has it.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum, _| if sum & 0x8000 == 0 { sum << 1 } else { sum << 1 ^ 0x1021 })
    })
}

fn encode(bytes: &[u8]) -> String {
    let bits = bytes.len() * 8;
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let digit = |at: usize| (at..at + 5).fold(0, |digit, at| digit << 1 | bit(at));
    (0..bits).step_by(5).map(|at| char::from(ALPHABET[usize::from(digit(at))])).collect()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut left) = (0_u16, 0);
    for character in text.bytes() {
        let digit = ALPHABET.iter().position(|known| *known == character)?;
        bits = bits << 5 | u16::try_from(digit).ok()?;
        left += 5;
        if left >= 8 {
            left -= 8;
            bytes.push((bits >> left).to_le_bytes()[0]);
            bits &= (1 << left) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::Seed;

    #[test]
    fn a_seed_has_the_public_key_that_nsc_says() {
        // The example of the documentation of nkeys.
        let seed = Seed::parse("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n").expect("a seed");
        assert_eq!(seed.public(), "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4");
        assert_eq!(seed.sign(b"nonce").len(), 64);
        for (bad, why) in [
            ("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VA", "checksum"),
            ("UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", "seed"),
            ("sua!", "no nkey"),
            ("", "no seed"),
        ] {
            assert!(Seed::parse(bad).is_err_and(|error| error.contains(why)), "{bad}");
        }
    }
}
