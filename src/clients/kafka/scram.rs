//! The client's side of SCRAM (RFC 5802, RFC 7677): proves a password without sending it, and that the server knows it too.

use std::num::NonZeroU32;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac, pbkdf2};

use super::settings::Mechanism;

/// Fewer rounds than this would let a false server try passwords fast; RFC 7677's least, and Kafka's.
const LEAST_ROUNDS: u32 = 4_096;
/// More would keep a core busy for long. Kafka's own limit is 16,384.
const MOST_ROUNDS: u32 = 100_000;

/// One exchange.
pub(super) struct Scram {
    hmac: hmac::Algorithm,
    digest: &'static digest::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
    nonce: String,
    first_bare: String,
}

/// What is left to verify when the server has accepted the proof.
pub(super) struct Expected(Vec<u8>, hmac::Key);

impl Scram {
    /// `None` for a mechanism that is not SCRAM. `nonce` must be random, printable and without a comma.
    pub fn new(mechanism: Mechanism, username: &str, nonce: &str) -> Option<Self> {
        let (hmac, digest, pbkdf2) = match mechanism {
            Mechanism::ScramSha256 => (hmac::HMAC_SHA256, &digest::SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
            Mechanism::ScramSha512 => (hmac::HMAC_SHA512, &digest::SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
            Mechanism::Plain | Mechanism::OauthBearer => return None,
        };
        let name = username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={name},r={nonce}");
        Some(Self { hmac, digest, pbkdf2, nonce: nonce.to_owned(), first_bare })
    }

    /// The first message to the server.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The proof, for the server's first message.
    ///
    /// # Errors
    /// Why the server's message cannot be used, in words.
    pub fn prove(&self, server_first: &[u8], password: &str) -> Result<(String, Expected), &'static str> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| "its first SCRAM message is no text")?;
        let field = |name: &str| server_first.split(',').find_map(|part| part.strip_prefix(name));
        let nonce = field("r=").ok_or("its first SCRAM message has no nonce")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("its SCRAM nonce does not continue ours");
        }
        let salt = field("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or("its SCRAM salt cannot be read")?;
        let rounds: u32 = field("i=").and_then(|text| text.parse().ok()).ok_or("its SCRAM rounds cannot be read")?;
        let rounds = NonZeroU32::new(rounds)
            .filter(|rounds| (LEAST_ROUNDS..=MOST_ROUNDS).contains(&rounds.get()))
            .ok_or("its number of SCRAM rounds is outside 4096 to 100000")?;
        let mut salted = vec![0; self.digest.output_len()];
        pbkdf2::derive(self.pbkdf2, rounds, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(self.hmac, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(self.digest, client_key.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = hmac::sign(&hmac::Key::new(self.hmac, stored.as_ref()), message.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        let expected = Expected(message.into_bytes(), hmac::Key::new(self.hmac, server_key.as_ref()));
        Ok((format!("{without_proof},p={}", STANDARD.encode(proof)), expected))
    }
}

impl Expected {
    /// Whether the server's last message proves that it knows the password too.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn verify(&self, server_final: &[u8]) -> Result<(), &'static str> {
        let text = std::str::from_utf8(server_final).map_err(|_| "its last SCRAM message is no text")?;
        let signature = text.split(',').find_map(|part| part.strip_prefix("v=")).and_then(|v| STANDARD.decode(v).ok());
        let signature = signature.ok_or("its last SCRAM message has no signature")?;
        hmac::verify(&self.1, &self.0, &signature)
            .map_err(|_| "it does not know the password itself: it may be another server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The exchange of RFC 7677, section 3.
    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn the_exchange_of_the_standard_is_reproduced() {
        let scram = Scram::new(Mechanism::ScramSha256, "user", NONCE).unwrap();
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (proof, expected) = scram.prove(FIRST.as_bytes(), "pencil").unwrap();
        assert_eq!(
            proof,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        expected.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        assert!(expected.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=").is_err());
        assert!(expected.verify(b"e=other-error").is_err());
    }

    #[test]
    fn a_false_servers_first_message_is_refused() {
        let scram = Scram::new(Mechanism::ScramSha256, "user", NONCE).unwrap();
        for (message, word) in [
            ("r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "nonce"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "nonce"),
            (&FIRST.replace("i=4096", "i=1"), "rounds"),
            (&FIRST.replace("i=4096", "i=4000000000"), "rounds"),
            (&FIRST.replace("s=W22", "s=$"), "salt"),
            ("", "nonce"),
        ] {
            assert!(scram.prove(message.as_bytes(), "pencil").err().unwrap().contains(word), "{message}");
        }
    }
}
