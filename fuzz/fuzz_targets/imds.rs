#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| autounseal_fuzz::run("imds", data));
