//! Bytes from the other end of the workers' socket: whatever they are, a frame or an error comes of them. What is a frame
//! is the same frame when it is written and read again.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pillion_protocol::codec;

fuzz_target!(|bytes: &[u8]| {
    let mut wire = BytesMut::from(bytes);
    while let Ok(Some(frame)) = codec::decode(&mut wire) {
        let mut written = BytesMut::new();
        codec::encode(&frame, &mut written).expect("what was read can be written");
        let again = codec::decode(&mut written).expect("what was written can be read").expect("all of it");
        assert_eq!(frame, again);
        assert!(written.is_empty());
    }
});
