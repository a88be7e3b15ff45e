//! Completion scripts. What clap generates knows verbs and options; what is ours knows keys, and that behind `--`
//! stands a command. Which word of a line is a key is for `dlock keys` to say: it reads the line as dlock will.

use clap::Command;
use clap_complete::Shell;

use crate::cli;

/// Bash: keys and commands come first, and for all else there is the function that clap made.
///
/// - bash splits words at colons, and has them in their quotes; so dlock reads the whole line.
/// - Without keys there is nothing to offer, and no file either: hence `compopt`.
/// - The package bash-completion, where it is loaded, knows the arguments of other commands.
const BASH: &str = r#"
_dlock_word() {
    local offered i
    COMPREPLY=()
    if offered=$(command dlock keys --bash="$2" -- "${COMP_LINE:0:COMP_POINT}" 2>/dev/null); then
        compopt +o default +o bashdefault
        [[ -z $offered ]] || mapfile -t COMPREPLY <<<"$offered"
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -- ]] || continue
        if declare -F _command_offset >/dev/null; then
            _command_offset $((i + 1))
        elif ((COMP_CWORD == i + 1)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$2")
        fi
        return
    done
    _dlock "$@"
}
"#;

/// Zsh: functions for the arguments that clap knows the places of.
///
/// - zsh looks again for each of its matchers if it finds nothing; a store that is away is asked once.
/// - `_arguments` forgets where `--` was, behind which the command begins.
const ZSH: &str = r#"
_dlock_keys() {
    zmodload -F zsh/datetime p:EPOCHREALTIME
    if [[ "$_dlock_typed" != "$_dlock_asked" ]] || (( EPOCHREALTIME - _dlock_heard > 1 )); then
        typeset -g _dlock_asked="$_dlock_typed"
        typeset -ga _dlock_offered
        _dlock_offered=(${(f)"$(command dlock keys -- "${(@Q)_dlock_typed}" 2>/dev/null)"})
        typeset -gF _dlock_heard=EPOCHREALTIME
    fi
    local expl
    _wanted keys expl key compadd -a _dlock_offered
}

_dlock_command() {
    local expl
    local -i dashes=$_dlock_typed[(i)--]
    if (( dashes < $#_dlock_typed )); then
        words=("${(@)_dlock_typed[dashes+1,-1]}")
        CURRENT=$#words
        _normal -p dlock
    else
        _wanted options expl 'before the command' compadd -- --
    fi
}
"#;

/// Zsh: the line up to the cursor, before `_arguments` takes it apart.
const ZSH_TYPED: &str = r#"
    local -a _dlock_typed=("${(@)words[1,CURRENT-1]}" "$PREFIX")"#;

/// Fish: it quotes and filters by itself, and needs to be told that these are no files.
///
/// - It does not quote a `~` that begins a word, unless one has typed a quote before: no key is better than a wrong one.
const FISH: &str = r#"
function __fish_dlock_at_key
    set -l typed (commandline -ct)
    set -g __fish_dlock_offered (command dlock keys -- (commandline -opc) "$typed" 2>/dev/null)
    set -l at_key $status
    test -n "$typed"
    or set -g __fish_dlock_offered (string match -v '~*' -- $__fish_dlock_offered)
    return $at_key
end

function __fish_dlock_at_command
    __fish_dlock_using_subcommand VERBS
    and contains -- -- (commandline -opc)
end

function __fish_dlock_command
    set -l words (commandline -opc)
    set -e words[1..(contains -i -- -- $words)]
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

complete -c dlock -n __fish_dlock_at_key -k -f -a '$__fish_dlock_offered'
complete -c dlock -n __fish_dlock_at_command -f -a '(__fish_dlock_command)'
"#;

/// The completion script for a shell.
pub(in crate::command) fn completions(shell: Shell) -> String {
    let mut dlock = offered();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut dlock, "dlock", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => {
            let (functions, register) = script.split_at(script.rfind("\nif ").unwrap_or(script.len()));
            format!("{functions}{BASH}{}", register.replace("complete -F _dlock ", "complete -F _dlock_word "))
        }
        Shell::Zsh => {
            let script: String = script.lines().map(|line| zsh_argument(line) + "\n").collect();
            let (functions, register) = script.split_at(script.rfind("\nif ").unwrap_or(script.len()));
            let begin = "\n_dlock() {";
            format!("{}{ZSH}{register}", functions.replacen(begin, &format!("{begin}{ZSH_TYPED}"), 1))
        }
        Shell::Fish => {
            let is_for_a_command = |verb: &&Command| verb.get_positionals().any(clap::Arg::is_last_set);
            let verbs: Vec<&str> = dlock.get_subcommands().filter(is_for_a_command).map(Command::get_name).collect();
            script + &FISH.replace("VERBS", &verbs.join(" "))
        }
        _ => script,
    }
}

/// The definition without the verb that is for scripts alone.
fn offered() -> Command {
    let all = cli::definition();
    let verbs = all.get_subcommands().filter(|verb| verb.get_name() != "keys").cloned();
    let dlock = Command::new("dlock").version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true);
    dlock.args(all.get_arguments().cloned()).subcommands(verbs)
}

/// A line of clap's script for zsh. What it says of an argument is `'NAME -- HELP:ACTION'`.
fn zsh_argument(line: &str) -> String {
    let name = line.split(" -- ").next().unwrap_or_default().trim_start_matches(['\'', '*', ':']);
    let action = match name {
        "command" => "_dlock_command",
        name if cli::KEYS.contains(&name) => "_dlock_keys",
        _ => return line.to_owned(),
    };
    line.replace(":_default' \\", &format!(":{action}' \\"))
}
