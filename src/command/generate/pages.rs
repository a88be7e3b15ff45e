//! What the man pages say besides the options.

use crate::exit::TABLE;

/// What a page says besides the options.
pub(super) struct Page {
    pub(super) about: &'static str,
    pub(super) exit: &'static [(&'static str, &'static str)],
    pub(super) examples: &'static [(&'static str, &'static str)],
}

pub(super) const DLOCK: Page = Page {
    about: "dlock holds a named lease while a command runs, so that a job runs once at a time. A lease ends when \
            its command ends, and when dlock, the command or the machine dies. Who waits gets the key in the order \
            in which it came. Without a store, keys live in a directory of this machine; redis://HOST names a Redis or \
            Valkey server, which many machines share. The URL of one may have a user, a password and a database \
            (redis://USER:PASSWORD@HOST:PORT/DB), a prefix for its keys (?prefix=NAME), and rediss:// TLS \
            (?ca=FILE&cert=FILE&key=FILE); redis+unix:///SOCKET is a socket. redis+sentinel://SENTINEL,SENTINEL/MASTER \
            is the master that sentinels watch, redis+cluster://NODE,NODE a cluster; with ?wait_replicas=N a lease counts \
            once N replicas of the server have it. redis+ring://NODE,NODE spreads keys over servers that know nothing of each \
            other, and with redis+quorum://NODE,NODE,NODE most of such servers must agree to a lease. \
            postgres://USER@HOST/DATABASE is a table in a PostgreSQL database, its URL as libpq reads it. \
            nats://HOST,HOST is a bucket in NATS JetStream, with ?replicas=3 on three servers of a cluster, and nats+tls:// TLS. etcd://HOST,HOST,HOST \
            is an etcd cluster, and etcds:// TLS. \
            Keep a URL with a password in a file, for --store-file. With --log-format json each line on stderr is a JSON object with schema (1), time (RFC \
            3339), level (error, warn or info) and message.",
    exit: &[("0", "success"), ("others", "see the page of the verb")],
    examples: &[
        ("Run a backup, one at a time", "dlock run backup -- /usr/local/bin/backup"),
        ("Who holds what", "dlock status"),
    ],
};

const RUN: Page = Page {
    about: "Takes the lease KEY, runs CMD, and gives the lease back when CMD ends. No shell is involved; stdin, stdout \
            and stderr are CMD's own. CMD finds KEY, the lease and its fence in DLOCK_KEY, DLOCK_LEASE and \
            DLOCK_FENCE. Another dlock run of the same KEY inside CMD enters the lease again and does not wait for \
            it. Signals are passed to CMD, which decides what they mean; dlock ends as CMD does. A lost or revoked \
            lease, and --max-run, stop CMD and all that it started: first SIGTERM, then, after --kill-after, \
            SIGKILL. If dlock itself is killed, so is CMD with all that it started, before anybody else gets KEY. \
            What CMD leaves running when it ends by itself is left alone. DUR is a span like 1h 30m, or seconds. \
            With --report one JSON object is written when all is over. Its outcome is ran, busy, lost, revoked, max-run, \
            signal (one came before there was a command), unreachable, refused or error; error is what was said on \
            stderr; exit and signal are how dlock ends, command_exit and command_signal how CMD did; what is not known \
            is null. It takes the place of FILE as a whole; only if dlock is killed the old one stays.",
    exit: &TABLE,
    examples: &[
        (
            "In a crontab: skip this run if the last one still goes on",
            "0 3 * * * dlock run -n -E 0 -q report -- /usr/local/bin/report",
        ),
        (
            "Wait at most five minutes, and stop a deploy that takes an hour",
            "dlock run -w 5m --max-run 1h deploy/prod -- ./deploy.sh",
        ),
        ("At most three at once", "dlock run --slots 3 convert -- ffmpeg -i in.mov out.mp4"),
        ("Only if nobody has held it since", "F=$(dlock fence state); dlock run --if-fence $F state -- ./update"),
    ],
};

const STATUS: Page = Page {
    about: "Shows who holds each KEY, since when, and how many wait for it; without KEY, all keys that are held or \
            waited for. With --json it prints one object, whose names stay as they are.",
    exit: &[("0", "a key that is shown is held"), ("1", "none is")],
    examples: &[
        ("Is it held?", "dlock status backup >/dev/null && echo busy"),
        ("For programs", "dlock status --json"),
    ],
};

const UNLOCK: Page = Page {
    about: "Tells the holder of KEY to stop its command and to give KEY back, and waits for that, so that nobody \
            overlaps. On a terminal it shows the holder and asks; elsewhere it wants --yes. It frees the lease that \
            it showed, and nobody who came since. With --force the key is free at once, while the former holder may \
            still be stopping. A lease of dlock acquire is taken at once, too: nothing stops the script that holds it.",
    exit: &[
        ("0", "the key was freed"),
        ("1", "it was free"),
        ("75", "it was not freed in time, or is held by another lease than --lease"),
    ],
    examples: &[("Stop whoever deploys", "dlock unlock deploy/prod --yes")],
};

const FENCE: Page = Page {
    about: "Prints the fencing token of KEY: a number that rises whenever KEY is granted and whenever a hold of it \
            ends. A resource that remembers the highest one it has seen can refuse a holder that comes too late.",
    exit: &[("0", "always, unless the store fails")],
    examples: &[(
        "Do it only if nobody else did",
        "F=$(dlock fence nightly); dlock run --if-fence $F nightly -- ./job",
    )],
};

const ACQUIRE: Page = Page {
    about: "Takes a lease of KEY that outlives dlock, and prints its id: for a script that cannot be run by dlock run. The \
            lease ends --ttl after it was taken or renewed last, on every store; whoever has the id renews it and gives \
            it back. If a signal comes before the id is out, or nobody reads it, the lease is given back. The \
            lease is shown as that of the process that called dlock. Nothing stops the script when the lease is \
            lost: it has to ask, with dlock check. With --json the output is one object with key, lease, fence and \
            until.",
    exit: &[
        ("0", "the lease was taken, and its id is out"),
        ("75", "busy: the key was not to be had in the time given (-E changes it)"),
        ("128 + n", "signal n came before that"),
    ],
    examples: &[
        (
            "Hold a key until the script ends",
            "export DLOCK_KEY=deploy; DLOCK_LEASE=$(dlock acquire $DLOCK_KEY --ttl 10m) || exit; export DLOCK_LEASE; \
             trap 'dlock release' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM",
        ),
        ("Stop before a step if the lease is gone", "dlock check >/dev/null || exit"),
    ],
};

const RENEW: Page = Page {
    about: "Makes a lease of dlock acquire live for --ttl from now on, and never less than it would have. One that has \
            ended is not brought back.",
    exit: &[("0", "the lease was extended"), ("76", "it does not hold the key any more")],
    examples: &[("For ten minutes more", "dlock renew --ttl 10m || exit")],
};

const RELEASE: Page = Page {
    about: "Gives a lease of dlock acquire back. What a dlock run holds it gives back itself; to end it there is dlock \
            unlock.",
    exit: &[("0", "the lease was given back"), ("76", "it did not hold the key any more")],
    examples: &[(
        "At the end of a script, also where a signal ends it",
        "trap 'dlock release' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM",
    )],
};

const CHECK: Page = Page {
    about: "Prints for how many whole seconds a lease is still good, less what clocks may differ by, after one round trip \
            to the store; or inf, where the lease is that of a dlock run and lasts as long as that lives, as in a \
            directory of this machine.",
    exit: &[("0", "the lease holds the key"), ("76", "it does not, or was asked to give it back")],
    examples: &[
        ("Before each step of a script", "dlock check >/dev/null || exit"),
        ("No longer than the lease", "timeout \"$(dlock check)\" ./step"),
    ],
};

const GUARD: Page = Page {
    about: "Runs CMD unless RESOURCE has seen a newer fence than N. It is the other end of the fence, for the machine \
            that owns RESOURCE: dlock run gives each holder of a lock a number that is higher than all before it, and \
            guard remembers the highest one. So a holder that lost its lock without knowing it, because it was frozen \
            or cut off, and that comes to write late, is refused. The same fence passes again and again. RESOURCE is \
            held while CMD runs, so that nothing newer comes between the look at the fence and the end of CMD; who \
            comes meanwhile waits in line. CMD is looked after as by dlock run. Fences are remembered in a directory \
            of this machine, on its disk before CMD starts: that of --store file:DIR, else of DLOCK_STORE or \
            DLOCK_STORE_FILE if that is a directory, else the default one. All who write to RESOURCE must use the \
            same one. RESOURCE is a name like a key, and has nothing to do with a key of the same name.",
    exit: &[
        ("the command's", "it ran to its end"),
        ("128 + n", "the command died of signal n, or dlock got n before there was a command"),
        ("76", "the fence is stale, and the command was not run; or what is remembered was deleted while it ran"),
        ("126", "the command was found but cannot be executed"),
        ("127", "the command was not found"),
    ],
    examples: &[
        ("In a job that runs under a lock", "dlock guard db -- psql -f update.sql"),
        (
            "The same, where the database is on another machine",
            "ssh dbhost dlock guard db --fence $DLOCK_FENCE -- psql -f update.sql",
        ),
    ],
};

const HISTORY: Page = Page {
    about: "Shows who held KEY, oldest first: since when (UTC), how long it had waited, for how long it held KEY, and \
            how that ended: exit N or signal N for the command of a dlock run, released for a lease that a script \
            gave back, expired for a holder that died or did not renew, unlocked by somebody, and at once by somebody \
            if nobody waited for the holder to stop. The store keeps the last 32 events of a key; a run that is over \
            is two of them. A holder that died ends when its lease did, or, in a directory, when somebody next asks for KEY. \
            With --json it prints one object with all of these events, whose names stay as they are.",
    exit: &[("0", "always, unless the store fails")],
    examples: &[
        ("Who had it last night?", "dlock history backup"),
        (
            "When did the job succeed last?",
            "dlock history backup --json | jq -r '[.events[] | select(.exit == 0)] | last.at'",
        ),
    ],
};

const METRICS: Page = Page {
    about: "Prints facts about all keys that the store knows, in the text format of OpenMetrics, which Prometheus and the \
            textfile collector of its node exporter read: whether each is held, by how many, for how long, how many \
            wait and for how long, its fence, how often it was granted, when last, and when a command ended well last. \
            A fact that is not known, or that the store has forgotten, is missing: it keeps the last 32 events of a \
            key. If the store fails nothing is printed.",
    exit: &[("0", "always, unless the store fails")],
    examples: &[(
        "In a crontab, for a textfile collector",
        "* * * * * cd /var/lib/prometheus/node-exporter && dlock metrics >dlock.new && mv dlock.new dlock.prom",
    )],
};

const DOCTOR: Page = Page {
    about: "Tells whether the store can be trusted with locks: what was decided and by whom, how fast the store answers, \
            how far its clock is from ours, what it is and how it is set up; then each thing that is wrong, what that \
            means for locks, and what to do about it. Of a Redis or Valkey server: keys that may be evicted, a disk that \
            forgets them, replicas that it does not wait for, anybody who gets in without a password, a version that \
            dlock is not tested with. Of sentinels and of a cluster: what keeps them from replacing a master that dies \
            before its leases end, slots that nobody serves, replicas that refuse us or whose clocks are others. Of \
            PostgreSQL: commits that a crash may lose, standbys that it does not wait for, a pooler, tables and rights that \
            are missing. Of NATS: copies that are too few, away or behind, a bucket in memory, a disk that is written late. Of etcd: \
            members that do not answer, alarms, versions with faults, hosts of different clusters, no compaction. Of a \
            directory: its file system, its room, and who may do what in it. It changes nothing. A user of a server \
            needs +info +config|get for it besides, and +cluster|info +cluster|slots on a cluster. With --json it prints \
            one object, whose names stay as they are, also if the store cannot be used.",
    exit: &[("0", "the store is sound; there may be notes"), ("1", "there are warnings: a lock may be lost")],
    examples: &[
        ("Before a store is used for the first time", "dlock doctor -S redis://redis.example"),
        ("What is wrong, for programs", "dlock doctor --json | jq -r '.findings[] | .severity + \": \" + .what'"),
    ],
};

const SETUP: Page = Page {
    about: "Prepares a store for locks, where that takes more than the first of them does by itself, and is quiet about it. \
            To do it again changes nothing. A directory and a Redis or Valkey server, with sentinels or in a cluster, need \
            no setup: that they can be used is all that it tells. Of a ring it makes the nodes of the URL those of the ring: \
            it closes all nodes, old and new, waits for those who hold a key that moves to another node, and opens the new \
            list; those who have the old URL are refused from then on. In PostgreSQL it makes the tables, in NATS the bucket; in etcd there is nothing to make, and --print shows \
            the role that a user needs. If such a key is held for longer than --wait, all is \
            as it was. A setup that was killed is taken up by the next one. With --print it changes nothing, and prints what \
            an administrator would run in its place; or says that there is nothing to run.",
    exit: &[
        ("0", "the store is ready, or what is to be run was printed"),
        ("75", "keys are held that keep it from that, and nothing was changed"),
    ],
    examples: &[
        ("Before a store is used for the first time", "dlock setup -S redis://redis.example"),
        ("A ring gets a fourth node", "dlock setup -S redis+ring://h1,h2,h3,h4 -w 1m"),
    ],
};

/// The page of each verb, in the order of the help.
pub(super) const VERBS: [(&str, Page); 13] = [
    ("run", RUN),
    ("status", STATUS),
    ("unlock", UNLOCK),
    ("fence", FENCE),
    ("acquire", ACQUIRE),
    ("renew", RENEW),
    ("release", RELEASE),
    ("check", CHECK),
    ("guard", GUARD),
    ("history", HISTORY),
    ("metrics", METRICS),
    ("doctor", DOCTOR),
    ("setup", SETUP),
];

/// What all verbs but `run`, whose table is whole, can exit with besides.
pub(super) const COMMON: [(&str, &str); 6] = [
    ("64", "bad usage, bad key"),
    ("69", "the store cannot be reached"),
    ("71", "the operating system refused"),
    ("73", "the lock directory cannot be made or trusted"),
    ("77", "the store refused us"),
    ("78", "bad configuration, a store URL that cannot be understood"),
];

pub(super) const ENVIRONMENT: [(&str, &str); 11] = [
    ("DLOCK_STORE", "the store, its URL or its name in the config file, unless --store says otherwise"),
    ("DLOCK_STORE_FILE", "a file with the store's URL, so that a password stands in no argument list"),
    ("DLOCK_CONFIG", "the config file, unless --config says otherwise"),
    ("DLOCK_NOTE", "what --note says"),
    (
        "DLOCK_KEY, DLOCK_LEASE, DLOCK_FENCE",
        "set for the command: the key, the lease's id, its fence, which guard reads",
    ),
    ("DLOCK_HELD", "set for the command: what all enclosing runs hold, for entering again"),
    ("XDG_STATE_HOME", "where the default directory is, unless root runs dlock"),
    ("XDG_CONFIG_HOME", "where the config file of a user is: in dlock/config.toml"),
    ("HOME", "where these are without XDG_STATE_HOME and XDG_CONFIG_HOME: in .local/state and .config"),
    ("PATH", "where the command is looked for"),
    ("NO_COLOR", "if it is set and not empty, no text is bold or coloured"),
];

pub(super) const FILES: [(&str, &str); 4] = [
    (
        "~/.config/dlock/config.toml",
        "the config file, in TOML: 'store' (a URL or a name), 'ttl', 'kill_after' and 'store_timeout' are what \
         the flags say, which come first; [stores.NAME] with 'url' or 'url_file' names a store. Relative paths \
         start where the file is",
    ),
    ("/etc/dlock.toml", "the config file, if that one is not there; only one is read"),
    ("/var/lib/dlock", "the default directory for root"),
    ("~/.local/state/dlock", "the default directory for others"),
];
