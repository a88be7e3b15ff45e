# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_dlock_global_optspecs
    string join \n S/store= store-file= config= store-timeout= q/quiet v/verbose log-format= h/help V/version
end

function __fish_dlock_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_dlock_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_dlock_using_subcommand
    set -l cmd (__fish_dlock_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c dlock -n "__fish_dlock_needs_command" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_needs_command" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_needs_command" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_needs_command" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_needs_command" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_needs_command" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_needs_command" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_needs_command" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_needs_command" -s V -l version -d 'Print version'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "run" -d 'Hold a key while a command runs'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "status" -d 'Show who holds keys, since when, and who waits'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "unlock" -d 'Take a key away from its holder'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "fence" -d 'Print a key\'s fence (0: never held)'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "acquire" -d 'Take a lease that outlives dlock, and print its id'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "renew" -d 'Extend such a lease'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "release" -d 'Give such a lease back'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "check" -d 'Print for how many seconds my lease is still good'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "guard" -d 'Run a command unless its fence is older than one that was seen here'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "history" -d 'Show who held a key, for how long, and how that ended'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "metrics" -d 'Print facts about all keys for a monitoring system'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "doctor" -d 'Tell whether the store can be trusted with locks'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "setup" -d 'Prepare a store, where it needs that'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "man" -d 'Print a man page'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s w -l wait -d 'Wait at most so long [default: as long as it takes]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -s E -l conflict-exit-code -d 'Exit with N if the key was not to be had [default: 75]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l if-fence -d 'Take the key only if its fence is still N and nobody holds it' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l slots -d 'Hold it together with at most N-1 others' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l ttl -d 'How long the lease lives unrenewed, at least 500ms [default: 30s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l min-hold -d 'Keep the key taken for at least DUR, even if the command ends sooner' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l note -d 'Shown by status (or DLOCK_NOTE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l max-reentry -d 'How deep the lease may be entered again by runs inside [default: 16]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -s k -l kill-after -d 'From SIGTERM to SIGKILL [default: 5s, or a third of the ttl if less]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l max-run -d 'Stop the command after DUR and exit 124' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l on-lost -d 'What a lost lease does to the command: stop or continue [default: stop]' -r -f -a "stop\t'It is stopped'
continue\t'It goes on; dlock still exits 76'"
complete -c dlock -n "__fish_dlock_using_subcommand run" -l report -d 'Write to FILE what became of the run, as JSON' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand run" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand run" -s n -l nonblock -d 'Give up at once if the key is taken'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s s -l shared -d 'Hold it together with other shared holders'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l prefix -d 'Only keys that begin so' -r
complete -c dlock -n "__fish_dlock_using_subcommand status" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand status" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand status" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand status" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand status" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand status" -l all -d 'Free keys, too'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l json -d 'As JSON, for programs'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l watch -d 'Show it again whenever it changes; with --json, one object for each change'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l lease -d 'Only if this lease holds it: at least the first 8 digits of its id' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -s w -l wait -d 'How long the holder may take to stop [default: what is left of its ttl]' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l force -d 'Do not wait for the holder to stop'
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -l yes -d 'Do not ask'
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand unlock" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s w -l wait -d 'Wait at most so long [default: as long as it takes]' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s E -l conflict-exit-code -d 'Exit with N if the key was not to be had [default: 75]' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l if-fence -d 'Take the key only if its fence is still N and nobody holds it' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l slots -d 'Hold it together with at most N-1 others' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l ttl -d 'How long the lease lives unrenewed, at least 500ms [default: 30s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l min-hold -d 'Keep the key taken for at least DUR, even if the command ends sooner' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l note -d 'Shown by status (or DLOCK_NOTE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s n -l nonblock -d 'Give up at once if the key is taken'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s s -l shared -d 'Hold it together with other shared holders'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -l json -d 'Key, lease, fence and end as JSON, for programs'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand acquire" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand renew" -l ttl -d 'How long the lease lives from now on, at least 500ms; never less than it would have [default: 30s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand renew" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand renew" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand renew" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand renew" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand renew" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand renew" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand renew" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand renew" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand release" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand release" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand release" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand release" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand release" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand release" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand release" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand release" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand check" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand check" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand check" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand check" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand check" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand check" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand check" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand check" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand guard" -l fence -d 'The fence of the lock that the command is run under [default: DLOCK_FENCE]' -r
complete -c dlock -n "__fish_dlock_using_subcommand guard" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand guard" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand guard" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand guard" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand guard" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand guard" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand guard" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand guard" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand history" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand history" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand history" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand history" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand history" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand history" -l json -d 'As JSON, for programs: all that happened'
complete -c dlock -n "__fish_dlock_using_subcommand history" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand history" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand history" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -l prefix -d 'Only keys that begin so' -r
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l json -d 'As JSON, for programs'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand setup" -s w -l wait -d 'How long to wait for those who hold keys that would be elsewhere [default: half of --store-timeout]' -r
complete -c dlock -n "__fish_dlock_using_subcommand setup" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand setup" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand setup" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand setup" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand setup" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand setup" -l print -d 'Change nothing, and print what somebody who may could run instead'
complete -c dlock -n "__fish_dlock_using_subcommand setup" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand setup" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand setup" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s h -l help -d 'Print help'
complete -c dlock -n "__fish_dlock_using_subcommand man" -s S -l store -d 'Where leases live, say redis://HOST, or the name of a store in the config file (or DLOCK_STORE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand man" -l store-file -d 'Read that URL from FILE (or DLOCK_STORE_FILE)' -r
complete -c dlock -n "__fish_dlock_using_subcommand man" -l config -d 'The config file (or DLOCK_CONFIG)' -r
complete -c dlock -n "__fish_dlock_using_subcommand man" -l store-timeout -d 'How long to try an unreachable store [default: 10s]' -r
complete -c dlock -n "__fish_dlock_using_subcommand man" -l log-format -d 'Say it in lines of text or json [default: text]' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c dlock -n "__fish_dlock_using_subcommand man" -s q -l quiet -d 'Say nothing but errors'
complete -c dlock -n "__fish_dlock_using_subcommand man" -s v -l verbose -d 'Say what is going on'
complete -c dlock -n "__fish_dlock_using_subcommand man" -s h -l help -d 'Print help'

function __fish_dlock_at_key
    set -l typed (commandline -ct)
    set -g __fish_dlock_offered (command dlock keys -- (commandline -opc) "$typed" 2>/dev/null)
    set -l at_key $status
    test -n "$typed"
    or set -g __fish_dlock_offered (string match -v '~*' -- $__fish_dlock_offered)
    return $at_key
end

function __fish_dlock_at_command
    __fish_dlock_using_subcommand run guard
    and contains -- -- (commandline -opc)
end

function __fish_dlock_command
    set -l words (commandline -opc)
    set -e words[1..(contains -i -- -- $words)]
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

complete -c dlock -n __fish_dlock_at_key -k -f -a '$__fish_dlock_offered'
complete -c dlock -n __fish_dlock_at_command -f -a '(__fish_dlock_command)'
