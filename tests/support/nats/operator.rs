//! An operator with an account and its users, as `nsc` makes them: keys of Ed25519, and JWTs that one signs for the next.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// What public keys begin with: of operators, accounts and users.
const OPERATOR: u8 = 14 << 3;
const ACCOUNT: u8 = 0;
const USER: u8 = 20 << 3;
const SEED: u8 = 18 << 3;

/// Who signs for whom.
pub(crate) struct Operator {
    own: Nkey,
    system: Nkey,
    account: Nkey,
}

/// A key pair.
struct Nkey {
    kind: u8,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self { own: Nkey::new(OPERATOR, 1), system: Nkey::new(ACCOUNT, 2), account: Nkey::new(ACCOUNT, 3) }
    }

    /// What makes a server believe it, for its configuration.
    pub(crate) fn settings(&self) -> String {
        let operator = self.own.signs(&self.own, "operator", json!({}));
        let account = |account: &Nkey, storage: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": -1, "consumer": -1,
            });
            let jwt = self.own.signs(account, "account", json!({ "limits": limits }));
            format!("{}: {jwt}", account.public())
        };
        format!(
            "operator: {operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}\n{}\n}}",
            self.system.public(),
            account(&self.system, 0),
            account(&self.account, -1)
        )
    }

    /// A file with which a user logs in who has these rights, and whose JWT ends then, if it does.
    pub(crate) fn creds(&self, rights: &Value, ends: Option<u64>) -> String {
        let user = Nkey::new(USER, 4);
        let mut claims = json!({ "subs": -1, "data": -1, "payload": -1 });
        rights.as_object().expect("an object").iter().for_each(|(name, right)| claims[name] = right.clone());
        let jwt = self.account.signs_until(&user, "user", claims, ends);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed()
        )
    }
}

impl Nkey {
    fn new(kind: u8, number: u8) -> Self {
        let seed = [number; 32];
        Self { kind, seed, pair: Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed") }
    }

    fn public(&self) -> String {
        written(&[&[self.kind], self.pair.public_key().as_ref()].concat())
    }

    fn seed(&self) -> String {
        written(&[&[SEED | self.kind >> 5, (self.kind & 31) << 3], &self.seed[..]].concat())
    }

    fn signs(&self, whom: &Self, kind: &str, claims: Value) -> String {
        self.signs_until(whom, kind, claims, None)
    }

    /// A JWT of the second version.
    fn signs_until(&self, whom: &Self, kind: &str, mut claims: Value, ends: Option<u64>) -> String {
        (claims["type"], claims["version"]) = (kind.into(), 2.into());
        let mut jwt =
            json!({ "jti": "x", "iat": 1, "iss": self.public(), "sub": whom.public(), "name": kind, "nats": claims });
        if let Some(ends) = ends {
            jwt["exp"] = ends.into();
        }
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let words = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&jwt));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.pair.sign(words.as_bytes()).as_ref());
        format!("{words}.{signature}")
    }
}

/// Bytes with their checksum (CRC-16 as XMODEM has it) in base32.
fn written(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u16, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum, _| if sum & 0x8000 == 0 { sum << 1 } else { sum << 1 ^ 0x1021 })
    });
    let all = [bytes, &sum.to_le_bytes()].concat();
    let bit = |at: usize| all.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let digit = |at: usize| (at..at + 5).fold(0, |digit, at| digit << 1 | bit(at));
    (0..all.len() * 8).step_by(5).map(|at| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[digit(at)])).collect()
}
