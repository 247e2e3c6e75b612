//! Signatures on the curve P-521, which `ring` lacks and certificates of some authorities carry.

use p521::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier};
use rustls::{
    SignatureScheme,
    crypto::{WebPkiSupportedAlgorithms, ring},
    pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id},
};
use sha2::{Digest, Sha256, Sha384, Sha512};

#[derive(Debug)]
struct P521 {
    signature: AlgorithmIdentifier,
    digest: fn(&[u8]) -> Vec<u8>,
}

static SHA256: P521 = P521 { signature: alg_id::ECDSA_SHA256, digest: |message| Sha256::digest(message).to_vec() };
static SHA384: P521 = P521 { signature: alg_id::ECDSA_SHA384, digest: |message| Sha384::digest(message).to_vec() };
static SHA512: P521 = P521 { signature: alg_id::ECDSA_SHA512, digest: |message| Sha512::digest(message).to_vec() };

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        // A digest shorter than half the curve's size is refused by the library's rule for safety, not by the standard: it is filled up from the
        // left, which does not change the number that it stands for.
        let digest = (self.digest)(message);
        let mut filled = vec![0; 66_usize.saturating_sub(digest.len())];
        filled.extend_from_slice(&digest);
        key.verify_prehash(&filled, &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];
type Schemes = &'static [(SignatureScheme, Algorithms)];

/// What `ring` verifies, and P-521.
pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    use std::sync::LazyLock;
    // Leaked once: rustls wants them for the life of the process.
    static ALL: LazyLock<(Algorithms, Schemes)> = LazyLock::new(|| {
        let known = ring::default_provider().signature_verification_algorithms;
        let mut all = known.all.to_vec();
        all.extend::<[&'static dyn SignatureVerificationAlgorithm; 3]>([&SHA256, &SHA384, &SHA512]);
        let ours: Algorithms = Vec::leak(vec![&SHA512 as &dyn SignatureVerificationAlgorithm]);
        let mut mapping = known.mapping.to_vec();
        mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, ours));
        (Vec::leak(all), Vec::leak(mapping))
    });
    WebPkiSupportedAlgorithms { all: ALL.0, mapping: ALL.1 }
}
