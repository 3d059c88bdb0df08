use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

fn file(name: &str) -> Json {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(json: &Json, field: &str) -> Vec<u8> {
    HEXLOWER
        .decode(json[field].as_str().unwrap_or_default().as_bytes())
        .unwrap()
}

fn vectors(name: &str) -> Vec<Json> {
    file(name)["vectors"].as_array().unwrap().clone()
}

/// The fields that the Go encoder printed, so that a decoder which agrees with itself only is found out.
fn assert_fields(vector: &Json) -> BlobInfo {
    let name = vector["name"].as_str().unwrap();
    let bytes = hex(vector, "blob_info_hex");
    let blob = BlobInfo::decode(&bytes).unwrap();
    assert_eq!(blob.ciphertext, hex(vector, "ciphertext_hex"), "{name}");
    assert_eq!(Some(blob.mechanism()), vector["mechanism"].as_u64(), "{name}");
    let info = blob.key_info.clone().unwrap_or_default();
    assert_eq!(info.key_id, vector["key_id"].as_str().unwrap(), "{name}");
    assert_eq!(info.wrapped_key, hex(vector, "wrapped_key_hex"), "{name}");
    assert_eq!(
        blob.key_info.is_some(),
        vector["blob_info_protojson"].get("key_info").is_some(),
        "{name}"
    );
    let ours_only = vector["blob_info_protojson"]
        .as_object()
        .unwrap()
        .keys()
        .all(|field| ["ciphertext", "iv", "key_info"].contains(&field.as_str()));
    if ours_only {
        assert_eq!(blob.encode(), bytes, "{name}: the Go encoder's bytes");
    }
    assert_eq!(BlobInfo::decode(&blob.encode()).unwrap(), blob, "{name}");
    blob
}

fn assert_opens(vector: &Json, blob: &BlobInfo, key: Vec<u8>) {
    let name = vector["name"].as_str().unwrap();
    let (key, aad) = (KeyBytes::new(key), hex(vector, "aad_hex"));
    let opened = open(&key, &blob.iv, &blob.ciphertext, &aad).unwrap();
    assert_eq!(opened.expose(), hex(vector, "plaintext_hex"), "{name}");
    let wrong = open(&key, &blob.iv, &blob.ciphertext, b"another place").unwrap_err();
    assert_eq!(wrong.reason, Reason::CiphertextInvalid, "{name}");
}

#[test]
fn every_awskms_vector_is_read_and_opened() {
    for vector in vectors("awskms-blobinfo.json") {
        let blob = assert_fields(&vector);
        if vector["mechanism"] == 1 {
            assert_eq!(blob.iv, hex(&vector, "iv_hex"));
            assert_opens(&vector, &blob, hex(&vector, "dek_hex"));
        }
    }
}

#[test]
fn every_ocikms_vector_is_read_and_opened() {
    for vector in vectors("ocikms-blobinfo.json") {
        let blob = assert_fields(&vector);
        assert_eq!(blob.iv, hex(&vector, "iv_hex"));
        let text = vector["extra"]["wrapped_key_text"].as_str().unwrap();
        assert_eq!(blob.key_info.clone().unwrap().wrapped_key, text.as_bytes());
        assert_opens(&vector, &blob, hex(&vector, "dek_hex"));
    }
}

#[test]
fn every_aead_vector_is_read_and_opened() {
    for vector in vectors("aead-blobinfo.json") {
        let blob = assert_fields(&vector);
        assert!(blob.iv.is_empty());
        assert_opens(&vector, &blob, hex(&vector["extra"], "aead_key_hex"));
    }
}

#[test]
fn the_framing_of_openbao_2_5_0_is_read() {
    let vector = file("openbao-250-combined.json");
    let blob = BlobInfo::decode(&hex(&vector, "blob_info_hex")).unwrap();
    assert!(blob.iv.is_empty());
    let opened = open(
        &KeyBytes::new(hex(&vector, "dek_hex")),
        &blob.iv,
        &blob.ciphertext,
        &hex(&vector, "aad_hex"),
    )
    .unwrap();
    assert_eq!(opened.expose(), hex(&vector, "plaintext_hex"));
}

#[test]
fn the_slots_of_a_vault_multiwrap_value_are_blobs() {
    let vector = file("vault-multiwrap.json");
    let value = hex(&vector, "value_hex");
    assert_eq!(&value[..16], b"multiwrapvalue:1");
    let length = u32::from_be_bytes(value[16..20].try_into().unwrap()) as usize;
    let slots: Vec<_> = Fields(&value[20..20 + length])
        .filter_map(|field| match field.unwrap() {
            (2, Value::Bytes(slot)) => Some(slot),
            _ => None,
        })
        .collect();
    let known = vectors("awskms-blobinfo.json");
    for (slot, name) in slots.iter().zip(vector["slots_from"].as_array().unwrap()) {
        let from = known.iter().find(|known| known["name"] == *name).unwrap();
        assert_eq!(*slot, hex(from, "blob_info_hex"));
        assert_opens(from, &BlobInfo::decode(slot).unwrap(), hex(from, "dek_hex"));
    }
    assert_eq!(slots.len(), 2);
}

#[test]
fn every_truncation_is_an_error_or_another_value() {
    for vector in vectors("awskms-blobinfo.json") {
        let bytes = hex(&vector, "blob_info_hex");
        let whole = BlobInfo::decode(&bytes).unwrap();
        let own_fields = vector["name"] != "awskms-caller-fields";
        for length in 0..bytes.len() {
            if let Ok(part) = BlobInfo::decode(&bytes[..length]) {
                assert!(part != whole || !own_fields, "{length}");
            }
        }
    }
}

#[test]
fn proto3_rules_hold() {
    // Any order; unknown fields of every legal type skipped; the last of a repeated field wins.
    let odd = [
        b"\x2a\x02\x08\x01".as_slice(),      // key_info { mechanism 1 }
        b"\x12\x01i\x12\x01j",               // iv "i", then "j"
        b"\x20\x01\x78\xff\x01",             // 4: true, 15: 255
        b"\x79\0\0\0\0\0\0\0\0\x7d\0\0\0\0", // 15 as fixed64 and fixed32
        b"\x3a\x06secret",                   // 7: a plaintext, never kept
        b"\x2a\x06\x1a\x01k\x2a\x01w",       // key_info { key_id "k", wrapped_key "w" }: merged
        b"\x2a\x02\x4a\x00",                 // key_info { key "" }: skipped
        b"\x0a\x01c",                        // ciphertext "c"
        b"\x08\x05",                         // 1 as a varint: another type, so unknown
    ]
    .concat();
    let blob = BlobInfo::decode(&odd).unwrap();
    assert_eq!(
        blob,
        BlobInfo {
            ciphertext: b"c".to_vec(),
            iv: b"j".to_vec(),
            key_info: Some(KeyInfo {
                mechanism: 1,
                key_id: "k".into(),
                wrapped_key: b"w".to_vec()
            }),
        }
    );
    assert_eq!(
        blob.encode(),
        b"\x0a\x01c\x12\x01j\x2a\x08\x08\x01\x1a\x01k\x2a\x01w"
    );
}

#[test]
fn an_empty_key_info_is_not_an_absent_one() {
    let blob = BlobInfo::decode(b"\x2a\x00").unwrap();
    assert_eq!(blob.key_info, Some(KeyInfo::default()));
    assert_eq!(blob.encode(), b"\x2a\x00");
}

#[test]
fn what_is_no_message_is_refused() {
    for bytes in [
        b"".as_slice(),
        b"\x0a",                                         // no length
        b"\x0a\x05abc",                                  // too short
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", // a length of 2^64-1
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", // a number of 65 bits
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
        b"\x02\x00",                 // field 0
        b"\x0b\x0c",                 // a group
        b"\x0c",                     // the end of a group
        b"\x0e\x00",                 // type 6
        b"\x82\x80\x80\x80\x10\x00", // field 2^29
        b"\x2a\x03\x1a\x01\xff",     // a key id that is no UTF-8
        b"\x2a\x01\x0a",             // an embedded message cut off
        &vec![0x0a; MAX_BYTES + 1],
    ] {
        let fault = BlobInfo::decode(bytes).unwrap_err();
        assert_eq!(fault.reason, Reason::CiphertextInvalid);
        assert!(fault.message.len() < 300);
    }
}

#[test]
fn a_message_of_just_64_kib_is_read_and_no_larger_one() {
    let of_size = |bytes| {
        // The tag of the field, and a length of three bytes.
        let blob = BlobInfo {
            ciphertext: vec![7; bytes - 4],
            ..BlobInfo::default()
        };
        (blob.encode(), blob)
    };
    let (largest, blob) = of_size(MAX_BYTES);
    assert_eq!(largest.len(), MAX_BYTES);
    assert_eq!(BlobInfo::decode(&largest).unwrap(), blob);
    for bytes in [MAX_BYTES + 1, 2 * MAX_BYTES] {
        let fault = BlobInfo::decode(&of_size(bytes).0).unwrap_err();
        assert!(fault.message.contains("larger than 64 KiB"), "{fault:?}");
    }
}

#[test]
fn every_length_of_an_aes_key_opens() {
    for algorithm in [&AES_128_GCM, &AES_192_GCM, &AES_256_GCM] {
        let key = vec![9; algorithm.key_len()];
        let nonce = [3; NONCE_LEN];
        let mut sealed = b"payload".to_vec();
        LessSafeKey::new(UnboundKey::new(algorithm, &key).unwrap())
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(b"place"),
                &mut sealed,
            )
            .unwrap();
        let opened = open(&KeyBytes::new(key), &nonce, &sealed, b"place").unwrap();
        assert_eq!(opened.expose(), b"payload", "{algorithm:?}");
    }
}

#[test]
fn what_we_seal_is_told_from_other_forms() {
    let blob = |iv: usize, ciphertext: usize| BlobInfo {
        ciphertext: vec![0; ciphertext],
        iv: vec![0; iv],
        key_info: None,
    };
    assert!(blob(12, 16).is_sealed() && blob(12, 48).is_sealed());
    // The nonce in front of the ciphertext, none at all, and no room for a tag.
    assert!(!blob(0, 60).is_sealed() && !blob(0, 0).is_sealed());
    assert!(!blob(11, 16).is_sealed() && !blob(12, 15).is_sealed() && !blob(12, 0).is_sealed());
}

#[test]
fn the_plaintext_is_encrypted_where_it_was_put_first() {
    for length in [1, 32, 4096] {
        let sealed = seal(&vec![7; length], b"").unwrap();
        // A buffer that grew would have left the plaintext behind in memory that nobody wipes.
        assert_eq!(sealed.ciphertext.capacity(), length + 16);
    }
}

#[test]
fn a_sealed_payload_opens_only_whole_and_in_its_place() {
    let sealed = seal(b"payload", b"place").unwrap();
    let Sealed {
        data_key,
        iv,
        ciphertext,
    } = &sealed;
    assert_eq!(data_key.expose().len(), DATA_KEY_BYTES);
    assert_eq!(ciphertext.len(), 7 + 16);
    assert_eq!(
        open(data_key, iv, ciphertext, b"place").unwrap().expose(),
        b"payload"
    );
    let combined = [iv.as_slice(), ciphertext].concat();
    assert_eq!(
        open(data_key, b"", &combined, b"place").unwrap().expose(),
        b"payload"
    );
    assert!(open(data_key, iv, ciphertext, b"").is_err());
    for at in 0..ciphertext.len() {
        let mut changed = ciphertext.clone();
        changed[at] ^= 1;
        assert!(open(data_key, iv, &changed, b"place").is_err());
        assert!(open(data_key, iv, &ciphertext[..at], b"place").is_err());
    }
    for length in [0, 1, 15, 17, 31, 33, 64] {
        let key = KeyBytes::new(vec![0; length]);
        assert!(open(&key, iv, ciphertext, b"place").is_err(), "{length}");
    }
    let again = seal(b"payload", b"place").unwrap();
    assert!(again.iv != *iv && !again.data_key.same_as(data_key));
    let empty = seal(b"", b"").unwrap();
    assert!(
        open(&empty.data_key, &empty.iv, &empty.ciphertext, b"")
            .unwrap()
            .expose()
            .is_empty()
    );
}

#[test]
fn debug_output_holds_no_ciphertext() {
    let blob = BlobInfo {
        ciphertext: b"ciphertext!".to_vec(),
        iv: b"nonce!".to_vec(),
        key_info: Some(KeyInfo {
            mechanism: 1,
            key_id: "id!".into(),
            wrapped_key: b"wrapped!".to_vec(),
        }),
    };
    assert!(!format!("{blob:?}").contains('!'));
    assert_eq!(
        format!("{blob:?}"),
        "BlobInfo { ciphertext: [11 bytes], iv: [6 bytes], key_info: Some(KeyInfo { mechanism: 1, key_id: [3 bytes], \
         wrapped_key: [8 bytes] }) }"
    );
    assert!(!format!("{blob:?}").contains("99, 105"));
}

prop_compose! {
    fn any_blob()(
        ciphertext in proptest::collection::vec(any::<u8>(), 0..300),
        iv in proptest::collection::vec(any::<u8>(), 0..16),
        key_info in proptest::option::of((
            any::<u64>(), ".{0,40}", proptest::collection::vec(any::<u8>(), 0..200)
        )),
    ) -> BlobInfo {
        BlobInfo {
            ciphertext,
            iv,
            key_info: key_info.map(|(mechanism, key_id, wrapped_key)| KeyInfo { mechanism, key_id, wrapped_key }),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(blob in any_blob()) {
        prop_assume!(blob != BlobInfo::default());
        prop_assert_eq!(BlobInfo::decode(&blob.encode()).unwrap(), blob);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = BlobInfo::decode(&bytes);
    }

    #[test]
    fn mutated_messages_never_panic(blob in any_blob(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = blob.encode();
        prop_assume!(!bytes.is_empty());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = BlobInfo::decode(&bytes) {
            let _ = open(&KeyBytes::new(vec![7; 32]), &read.iv, &read.ciphertext, b"");
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = BlobInfo::decode(&bytes);
    }
}
