//! Completions and man pages, made from the definition of the command line.

mod pages;
mod shells;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use self::pages::{COMMON, DLOCK, ENVIRONMENT, FILES, VERBS};
pub(super) use self::shells::completions;
use crate::cli;
use crate::exit::Failure;

/// The man page of a verb, or of dlock itself.
///
/// # Errors
/// 64 if there is no such verb.
pub(super) fn man(verb: Option<&str>) -> Result<String, Failure> {
    let dlock = cli::definition();
    let (command, page) = match verb {
        None => (dlock, DLOCK),
        Some(name) => {
            let page = VERBS.into_iter().find(|(verb, _)| *verb == name);
            let (_, page) = page.ok_or_else(|| Failure::usage(format!("there is no page for '{name}'")))?;
            (with_globals(&dlock, name), page)
        }
    };
    let man = Man::new(command).section("1").source(format!("dlock {}", env!("CARGO_PKG_VERSION"))).manual("dlock");
    let render = || -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        section("DESCRIPTION").text([roman(page.about)]).to_writer(&mut text)?;
        man.render_options_section(&mut text)?;
        if verb.is_none() {
            man.render_subcommands_section(&mut text)?;
        }
        let common = if verb == Some("run") { &[][..] } else { &COMMON[..] };
        list("EXIT STATUS", &[page.exit, common].concat()).to_writer(&mut text)?;
        list("ENVIRONMENT", &ENVIRONMENT).to_writer(&mut text)?;
        list("FILES", &FILES).to_writer(&mut text)?;
        let mut examples = section("EXAMPLES");
        for (what, line) in page.examples {
            examples.control("TP", []).text([roman(*what)]).text([bold(*line)]);
        }
        examples.to_writer(&mut text)?;
        section("SEE ALSO").text([roman(see_also(verb))]).to_writer(&mut text)?;
        Ok(text)
    };
    let text = render().map_err(|error| Failure::os("cannot write the page", &error))?;
    let text = String::from_utf8_lossy(&text);
    // Each section comes with the same definition of an apostrophe; one is enough.
    let (definition, rest) = text.split_at(text.find(".TH").unwrap_or(0));
    Ok(format!("{definition}{}", rest.replace(definition, "")))
}

/// A verb with its own name and with the options of all verbs, as on its own page.
fn with_globals(dlock: &Command, verb: &str) -> Command {
    let found = dlock.find_subcommand(verb).expect("it has a page").clone();
    let globals = dlock.get_arguments().filter(|arg| arg.is_global_set()).cloned();
    let name = format!("dlock-{verb}");
    found.name(name.clone()).bin_name(format!("dlock {verb}")).args(globals)
}

fn section(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [name]);
    roff
}

fn list(name: &str, rows: &[(&str, &str)]) -> Roff {
    let mut roff = section(name);
    for (term, words) in rows {
        roff.control("TP", []).text([bold(*term)]).text([roman(*words)]);
    }
    roff
}

fn see_also(verb: Option<&str>) -> String {
    let pages = [None].into_iter().chain(VERBS.iter().map(|(verb, _)| Some(*verb)));
    let name = |page: Option<&str>| page.map_or_else(|| "dlock(1)".into(), |verb| format!("dlock-{verb}(1)"));
    let others = pages.filter(|page| *page != verb).map(name);
    others.chain(["flock(1)".into(), "timeout(1)".into()]).collect::<Vec<_>>().join(", ")
}
