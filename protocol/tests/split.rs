//! Every frame is read in the same way, at whatever bytes the stream is cut into pieces.

mod frames;

use bytes::BytesMut;
use pillion_protocol::connection::FrameReader;
use pillion_protocol::{Frame, codec};
use tokio::io::AsyncReadExt;

fn encoded(frame: &Frame) -> BytesMut {
    let mut wire = BytesMut::new();
    codec::encode(frame, &mut wire).unwrap();
    wire
}

#[test]
fn a_frame_cut_at_any_offset_decodes_the_same() {
    for frame in frames::one_of_each() {
        let bytes = encoded(&frame);
        for cut in 0..bytes.len() {
            let mut wire = BytesMut::from(&bytes[..cut]);
            assert_eq!(codec::decode(&mut wire).unwrap(), None, "{frame:?} cut at {cut}");
            assert_eq!(wire, bytes[..cut], "an incomplete frame stays in the buffer");
            wire.extend_from_slice(&bytes[cut..]);
            assert_eq!(codec::decode(&mut wire).unwrap().as_ref(), Some(&frame), "cut at {cut}");
        }
    }
}

#[test]
fn a_stream_given_byte_by_byte_yields_every_frame_in_order() {
    let frames = frames::one_of_each();
    let stream: Vec<u8> = frames.iter().flat_map(|frame| encoded(frame).to_vec()).collect();
    let mut wire = BytesMut::new();
    let mut seen = Vec::new();
    for byte in stream {
        wire.extend_from_slice(&[byte]);
        seen.extend(codec::decode(&mut wire).unwrap());
    }
    assert_eq!(seen, frames);
    assert!(wire.is_empty());
}

#[test]
fn a_reader_sees_the_same_frames_however_the_stream_is_halved() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let frames = frames::one_of_each();
    let stream: Vec<u8> = frames.iter().flat_map(|frame| encoded(frame).to_vec()).collect();
    for cut in 0..=stream.len() {
        runtime.block_on(async {
            let mut reader = FrameReader::new((&stream[..cut]).chain(&stream[cut..]));
            for frame in &frames {
                assert_eq!(reader.next().await.unwrap().as_ref(), Some(frame), "halved at {cut}");
            }
            assert_eq!(reader.next().await.unwrap(), None);
        });
    }
}
