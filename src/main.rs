//! The binary: parse, run, exit as told. Alone in calling exit or dying of a signal.

use std::ffi::OsString;
use std::process::ExitCode;

use dlock::exit::Ending;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match dlock::command::main(&args) {
        Ending::Code(code) => ExitCode::from(code),
        Ending::Signal(number) => {
            dlock::sys::die_of(number);
            // We live on as pid 1 of a namespace; a shell would show this number.
            ExitCode::from(128_u8.saturating_add(u8::try_from(number).unwrap_or(127)))
        }
    }
}
