//! A client of the protocol for streams that stores offsets and asks for them: so much of it, and no more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};

const STORE_OFFSET: u16 = 10;
const QUERY_OFFSET: u16 = 11;
const PEER_PROPERTIES: u16 = 17;
const SASL_HANDSHAKE: u16 = 18;
const SASL_AUTHENTICATE: u16 = 19;
const TUNE: u16 = 20;
const OPEN: u16 = 21;

/// A connection by which consumers keep their offsets, as the user `guest` in the virtual host `/`.
pub(crate) struct Offsets(TcpStream);

impl Offsets {
    pub(crate) fn open(mut stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        call(&mut stream, PEER_PROPERTIES, &[0; 4])?;
        call(&mut stream, SASL_HANDSHAKE, &[])?;
        let login = [string("PLAIN").as_slice(), &[0, 0, 0, 12], b"\0guest\0guest"].concat();
        call(&mut stream, SASL_AUTHENTICATE, &login)?;
        send(&mut stream, TUNE, &[0, 16, 0, 0, 0, 0, 0, 0])?;
        call(&mut stream, OPEN, &string("/"))?;
        Ok(Self(stream))
    }

    /// Stores an offset, and waits until the server tells it.
    pub(crate) fn store(&mut self, name: &str, reference: &str, offset: u64) -> Result<()> {
        let place = [string(reference), string(name)].concat();
        for _ in 0..600 {
            send(&mut self.0, STORE_OFFSET, &[place.as_slice(), &offset.to_be_bytes()].concat())?;
            std::thread::sleep(Duration::from_millis(50));
            if self.stored(name, reference)? == Some(offset) {
                return Ok(());
            }
        }
        bail!("the offset was not stored")
    }

    /// What is stored, if anything is.
    pub(crate) fn stored(&mut self, name: &str, reference: &str) -> Result<Option<u64>> {
        let told = call(&mut self.0, QUERY_OFFSET, &[string(reference), string(name)].concat())?;
        let offset = told.get(6..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_be_bytes(*bytes));
        Ok(offset.filter(|_| told[4..6] == [0, 1]))
    }
}

/// One request: returns the number, the code and what follows.
fn call(stream: &mut TcpStream, key: u16, body: &[u8]) -> Result<Vec<u8>> {
    send(stream, key, &[[0, 0, 0, 1].as_slice(), body].concat())?;
    loop {
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(size))?];
        stream.read_exact(&mut frame)?;
        if frame[..2] == (key | 0x8000).to_be_bytes() {
            if key != QUERY_OFFSET && frame[8..10] != [0, 1] {
                bail!("request {key} is refused: {frame:?}");
            }
            return Ok(frame.split_off(4));
        }
    }
}

fn send(stream: &mut TcpStream, key: u16, body: &[u8]) -> Result<()> {
    let frame = [&key.to_be_bytes(), [0, 1].as_slice(), body].concat();
    Ok(stream.write_all(&[u32::try_from(frame.len())?.to_be_bytes().as_slice(), &frame].concat())?)
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}
