//! How a user proves to a NATS server who it is with a key of its own (nkey): the key never leaves the operator, the server's challenge is signed.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use data_encoding::BASE32_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// What a seed begins with, in the upper five bits: it is one.
const SEED: u8 = 18 << 3;
/// What the public key of a user begins with.
const USER: u8 = 20 << 3;

/// A user's key, with what is needed to log in by it. Not shown.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct UserKey {
    /// As it was written (`SU…`), for telling keys apart and for keeping it out of messages.
    seed: String,
    /// The public key (`U…`), by which a server knows the user. May be shown.
    public: String,
    /// The user's claims, signed by its account, where the server knows accounts and not users.
    jwt: Option<String>,
}

impl UserKey {
    /// Reads a seed, which begins with `SU`.
    ///
    /// # Errors
    /// What is wrong with it, in words that repeat none of it.
    pub(super) fn from_seed(seed: &str) -> Result<Self, &'static str> {
        let key = key_pair(seed)?;
        let mut public = vec![USER];
        public.extend_from_slice(key.public_key().as_ref());
        let checksum = checksum(&public).to_le_bytes();
        public.extend_from_slice(&checksum);
        Ok(Self { seed: seed.to_owned(), public: BASE32_NOPAD.encode(&public), jwt: None })
    }

    /// Reads a credentials file, as `nsc` writes it: the user's JWT and its seed, each between lines of dashes.
    ///
    /// # Errors
    /// As [`UserKey::from_seed`].
    pub(super) fn from_credentials(text: &str) -> Result<Self, &'static str> {
        const PARTS: &str = "it is no credentials file, which holds a user's JWT and its seed, each between lines of dashes: copy it whole, as nsc wrote it";
        let mut parts = Vec::new();
        let mut part: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if line.starts_with("---") {
                parts.extend(part.take().filter(|part| !part.is_empty()));
                part = line.contains("BEGIN").then(String::new);
            } else if let Some(part) = &mut part {
                part.push_str(line);
            }
        }
        let [jwt, seed] = <[String; 2]>::try_from(parts).map_err(|_| PARTS)?;
        let is_jwt =
            jwt.split('.').count() == 3 && jwt.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        if !is_jwt {
            return Err(PARTS);
        }
        Ok(Self { jwt: Some(jwt), ..Self::from_seed(&seed)? })
    }

    /// The public key.
    pub(super) fn public(&self) -> &str {
        &self.public
    }

    /// The user's claims, where there are some.
    pub(super) fn jwt(&self) -> Option<&str> {
        self.jwt.as_deref()
    }

    /// What no message may repeat.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.seed.as_str()).chain(self.jwt())
    }

    /// The signature of the server's challenge, in the text that the server expects.
    ///
    /// # Errors
    /// As [`UserKey::from_seed`].
    pub(super) fn sign(&self, challenge: &str) -> Result<String, &'static str> {
        Ok(BASE64_URL_SAFE_NO_PAD.encode(key_pair(&self.seed)?.sign(challenge.as_bytes())))
    }
}

fn key_pair(seed: &str) -> Result<Ed25519KeyPair, &'static str> {
    const NO_SEED: &str = "it is no seed of a user's nkey, which is 58 letters and digits and begins with SU";
    let bytes = BASE32_NOPAD.decode(seed.as_bytes()).map_err(|_| NO_SEED)?;
    let [first, second, secret @ .., low, high] = bytes.as_slice() else { return Err(NO_SEED) };
    // Three bits of the kind of key are in the first byte, and five in the second.
    let kind = (first & 7) << 5 | second >> 3;
    if first & !7 != SEED || u16::from_le_bytes([*low, *high]) != checksum(&bytes[..bytes.len() - 2]) {
        return Err(NO_SEED);
    }
    if kind != USER {
        return Err("it is the seed of an account, operator or server: the one of a user begins with SU");
    }
    Ed25519KeyPair::from_seed_unchecked(secret).map_err(|_| NO_SEED)
}

/// CRC-16/XMODEM, with which keys are written.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc: u16, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_xmodem() {
        assert_eq!(checksum(b"123456789"), 0x31c3);
    }

    #[test]
    fn a_seed_is_read_only_if_it_is_whole_and_of_a_user() {
        let key = UserKey::from_seed(&seed(USER)).unwrap();
        assert!(key.public().starts_with('U') && key.public().len() == 56 && key.jwt().is_none());
        assert!(seed(USER).starts_with("SU") && seed(USER).len() == 58);
        let account = UserKey::from_seed(&seed(0)).map(|_| ()).unwrap_err();
        assert!(account.contains("of an account"), "{account}");
        let whole = seed(USER);
        for text in
            ["", "S", "SU", "hunter2", &whole[..57], &whole.to_lowercase(), &whole.replacen('A', "B", 1), key.public()]
        {
            let refused = UserKey::from_seed(text).map(|_| ()).unwrap_err();
            assert!(refused.contains("begins with SU"), "{text}: {refused}");
        }
    }

    /// A seed of this kind of key.
    fn seed(kind: u8) -> String {
        let mut bytes = vec![SEED | kind >> 5, kind << 3];
        bytes.extend([0; 32]);
        let checksum = checksum(&bytes).to_le_bytes();
        bytes.extend(checksum);
        BASE32_NOPAD.encode(&bytes)
    }

    #[test]
    fn a_credentials_file_holds_claims_and_a_seed() {
        let file = format!(
            "-----BEGIN NATS USER JWT-----\nabc.d-f.g_i\n------END NATS USER JWT------\n\n*** IMPORTANT ***\nNKEY Seed printed below can be used to sign.\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n***\n",
            seed(USER)
        );
        let key = UserKey::from_credentials(&file).unwrap();
        assert_eq!(key.jwt(), Some("abc.d-f.g_i"));
        assert_eq!(key.secrets().count(), 2);
        assert_ne!(Some(key.sign("one").unwrap()), key.sign("two").ok());
        for text in [
            "",
            "hunter2",
            "-----BEGIN-----",
            &file.replace("abc.d-f.g_i", ""),
            &file.replace("abc.d", "abc"),
            &file[..200],
        ] {
            assert!(UserKey::from_credentials(text).is_err(), "{text}");
        }
    }
}
