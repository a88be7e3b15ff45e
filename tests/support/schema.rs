//! What programs read is as tests/schemas/ says, and has no name that does not stand there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::{Done, command, has, skipped};

/// Validates what each line names against a schema (Draft 2020-12), and answers with a line: nothing, or what is wrong.
const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator as Validator
for line in sys.stdin:
    path, value = json.loads(line)
    schema = json.load(open(path))
    Validator.check_schema(schema)
    wrong = [f'{error.json_path}: {error.message}' for error in Validator(schema).iter_errors(value)]
    print(json.dumps(wrong), flush=True)
";

type Pipes = (ChildStdin, BufReader<ChildStdout>);

/// Python takes a while to start, so one serves all tests. It ends with its stdin, when they do.
static VALIDATOR: LazyLock<Option<Mutex<Pipes>>> = LazyLock::new(|| {
    has_module("jsonschema").then(|| {
        // One of ours would end with the thread of the first test that asks.
        let mut python = Command::new("python3");
        let mut child = python.args(["-c", VALIDATE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.as_mut().expect("Python starts");
        let pipes = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Mutex::new((pipes.0, BufReader::new(pipes.1)))
    })
});

/// Checks that a text is the JSON that `tests/schemas/NAME.json` describes, and returns it. Without Python's
/// jsonschema only that it is JSON.
#[track_caller]
pub(crate) fn assert_schema(name: &str, json: &str) -> serde_json::Value {
    let value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/schemas/{name}.json"));
    if let Some(validator) = &*VALIDATOR {
        let mut line = String::new();
        {
            let (asked, answers) = &mut *validator.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(asked, "{}", serde_json::json!([schema, value])).expect("it reads");
            answers.read_line(&mut line).expect("it answers");
        }
        assert_eq!(line, "[]\n", "{name}: {json}");
    }
    value
}

/// Whether Python has this module, which tests/run installs.
fn has_module(module: &str) -> bool {
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    has("python3") && {
        let import = format!("import {module}");
        let found = quiet(command("python3").args(["-c", &import])).is_ok_and(|status| status.success());
        found || skipped(&format!("Python has no {module}"))
    }
}

/// Runs Python on `input`, if it has this module, which tests/run installs.
pub(crate) fn python(module: &str, args: &[&str], input: &str) -> Option<Done> {
    has_module(module).then(|| {
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
