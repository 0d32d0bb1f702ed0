use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Where distributions keep the certificates that the machine trusts, as one file: Debian, Alpine and Arch; Fedora and its
/// family, in two places; openSUSE; what is left.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why the machine's trust anchors could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadAnchorsError {
    #[error("this machine has no bundle of certificates that it trusts; Debian's package for them is ca-certificates")]
    None,
    #[error("cannot read the certificates that this machine trusts from {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no certificate in {path}", path = path.display())]
    Empty { path: PathBuf },
}

/// The certificates that the machine trusts, in DER, for a gateway whose resolvers are asked over TLS or HTTPS.
///
/// # Errors
/// When there are none or they cannot be read.
pub fn trust_anchors() -> Result<Vec<Vec<u8>>, ReadAnchorsError> {
    let path = BUNDLES.map(Path::new).into_iter().find(|path| path.exists()).ok_or(ReadAnchorsError::None)?;
    let path = path.to_owned();
    match std::fs::read(&path) {
        Err(source) => Err(ReadAnchorsError::Read { path, source }),
        Ok(text) => {
            let anchors: Vec<Vec<u8>> =
                CertificateDer::pem_slice_iter(&text).flatten().map(|anchor| anchor.to_vec()).collect();
            if anchors.is_empty() { Err(ReadAnchorsError::Empty { path }) } else { Ok(anchors) }
        }
    }
}
