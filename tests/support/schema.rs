//! What programs read is as tests/schemas/ says, and has no name that does not stand there.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Done, command, has, skipped};

/// Validates each line of stdin against a schema (Draft 2020-12).
const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator as Validator
schema = json.load(open(sys.argv[1]))
Validator.check_schema(schema)
for error in Validator(schema).iter_errors(json.load(sys.stdin)):
    sys.exit(f'{error.json_path}: {error.message}')
";

/// Checks that a text is the JSON that `tests/schemas/NAME.json` describes, and returns it. Without Python's
/// jsonschema only that it is JSON.
#[track_caller]
pub(crate) fn assert_schema(name: &str, json: &str) -> serde_json::Value {
    let value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/schemas/{name}.json"));
    let schema = schema.to_str().expect("a path in UTF-8");
    if let Some(done) = python("jsonschema", &["-c", VALIDATE, schema], json) {
        assert!(done.status.success(), "{name}: {}\n{json}", done.stderr);
    }
    value
}

/// Runs Python on `input`, if it has this module, which tests/run installs.
pub(crate) fn python(module: &str, args: &[&str], input: &str) -> Option<Done> {
    let import = format!("import {module}");
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = has("python3") && {
        let found = quiet(command("python3").args(["-c", &import])).is_ok_and(|status| status.success());
        found || skipped(&format!("Python has no {module}"))
    };
    found.then(|| {
        let mut python = command("python3");
        let pipes = python.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("Python starts");
        // Whoever does not read it says why on stderr.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().expect("it can be waited for");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Done { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    })
}
