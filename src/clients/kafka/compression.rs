//! The compressions that producers choose from, undone within a limit.

use std::io::{self, Read};

/// Snappy as Kafka's Java client writes it: blocks behind a header of 16 bytes that begins so.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

/// Undoes the compression with this number in a batch's header.
///
/// # Errors
/// What cannot be undone, or would come to more than `most` bytes. Holds nothing of the data.
pub(super) fn decompress(codec: i16, data: &[u8], most: usize) -> Result<Vec<u8>, String> {
    match codec {
        1 => within("gzip", flate2::read::MultiGzDecoder::new(data), most),
        2 => snappy(data, most),
        3 => within("lz4", lz4_flex::frame::FrameDecoder::new(data), most),
        4 => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(data).map_err(|error| broken("zstd", &error))?;
            within("zstd", decoder, most)
        }
        other => Err(format!("it has compression number {other}, which is none of gzip, snappy, lz4 and zstd")),
    }
}

fn broken(name: &str, why: &impl std::fmt::Display) -> String {
    format!("its {name} compression cannot be undone ({why})")
}

fn too_large(most: usize) -> String {
    format!("decompressed it has more than {most} bytes")
}

fn within(name: &str, decoder: impl Read, most: usize) -> Result<Vec<u8>, String> {
    let mut undone = Vec::new();
    // One more, so that what is too long is told from what fits.
    let read = decoder.take(most as u64 + 1).read_to_end(&mut undone);
    read.map_err(|error: io::Error| broken(name, &error))?;
    if undone.len() > most { Err(too_large(most)) } else { Ok(undone) }
}

fn snappy(data: &[u8], most: usize) -> Result<Vec<u8>, String> {
    let mut undone = Vec::new();
    let mut block = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).map_err(|error| broken("snappy", &error))?;
        if length > most.saturating_sub(undone.len()) {
            return Err(too_large(most));
        }
        let of_block = snap::raw::Decoder::new().decompress_vec(block).map_err(|error| broken("snappy", &error))?;
        undone.extend_from_slice(&of_block);
        Ok(())
    };
    if !data.starts_with(XERIAL) {
        block(data)?;
        return Ok(undone);
    }
    let mut rest = data.get(XERIAL_HEADER_BYTES..).unwrap_or_default();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((one, behind)) = behind.split_at_checked(length) else {
            return Err(broken("snappy", &"a block is longer than the batch"));
        };
        block(one)?;
        rest = behind;
    }
    Ok(undone)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xerial(data: &[u8]) -> Vec<u8> {
        let mut all = [XERIAL, &[0, 0, 0, 1, 0, 0, 0, 1][..]].concat();
        for part in data.chunks(50_000) {
            let block = snap::raw::Encoder::new().compress_vec(part).unwrap();
            all.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
            all.extend(block);
        }
        all
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn what_is_compressed_comes_back_and_no_more_than_the_limit_is_made_of_it() {
        let data = b"event ".repeat(20_000);
        let snappy = snap::raw::Encoder::new().compress_vec(&data).unwrap();
        for (codec, compressed) in
            [(1, gzip(&data)), (2, snappy), (2, xerial(&data)), (3, lz4(&data)), (4, zstd(&data))]
        {
            assert!(compressed.len() < data.len(), "{codec}");
            assert_eq!(decompress(codec, &compressed, data.len()).unwrap(), data, "{codec}");
            let why = decompress(codec, &compressed, data.len() - 1).unwrap_err();
            assert!(why.contains("119999 bytes"), "{codec}: {why}");
            let short = &compressed[..compressed.len() / 2];
            assert!(decompress(codec, short, data.len()).is_err(), "{codec}");
        }
        assert!(decompress(5, b"x", 10).unwrap_err().contains("compression number 5"));
    }
}
