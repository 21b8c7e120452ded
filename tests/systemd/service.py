"""The installed service in its container: how it is asked, and what the checks are made of."""

import json
import time


class Wrong(Exception):
    """What a check found."""


def hold(condition, told):
    if not condition:
        raise Wrong(told)


CONFIG = """\
[run]
policy = "/var/lib/rlhfd/models/policy"
seed = 7
iterations_max = 50
prompts_per_iteration = 12
[control]
readers_socket = "/run/rlhfd/rlhfd-read.sock"
[store]
disk_free_min_mib = 0
[devices]
use = ["cpu"]
[scheduler]
unit_tokens_cpu = 600
heartbeat_ms = 200
stop_timeout_s = 10
[worker]
threads = 1
[prompts]
prompt_tokens_max = 200
[generate]
max_new_tokens = 48
batch_prompts = 2
[[generate.arms]]
name = "arm"
n = 4
[[label.scorers]]
name = "reward"
model = "/var/lib/rlhfd/models/reward"
[train]
batch_pairs = 1
micro_batch_pairs = 1
epochs = 40
learning_rate = 1e-4
save_every_steps = 2
[evaluate]
temperatures = [1.0]
n = 2
max_new_tokens = 48
bootstrap_samples = 100
"""


class Service:
    def __init__(self, container):
        self.run = container.run
        self.prompts = 0

    def ok(self, *words, **options):
        """Runs a command that must succeed; gives what it printed."""
        done = self.run(*words, **options)
        hold(done.returncode == 0, f"{' '.join(map(str, words))}: exit {done.returncode}: "
                                   f"{(done.stderr or done.stdout).strip()[-800:]}")
        return done.stdout

    def shows(self, name, unit="rlhfd.service"):
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def pid(self):
        return int(self.shows("MainPID") or 0)

    def signal(self, name, pid):
        # By the shell: a minimal Debian has no program for it.
        self.run("sh", "-c", f"kill -{name} {pid}")

    def until(self, what, ask, seconds=180):
        """Waits for a fact; gives it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = ask()
            if answer:
                return answer
            time.sleep(0.1)
        raise Wrong(f"after {seconds} s still waiting: {what}")

    def until_active(self, other_than=0):
        def ask():
            return self.shows("ActiveState") == "active" and self.pid() not in (0, other_than) and self.pid()
        return self.until("the service to be active", ask)

    def sql(self, statement):
        """The first value of a question, through the daemon."""
        told = self.ok("rlhfctl", "--json", "sql", statement)
        rows = json.loads(told)["rows"]
        return rows[0][0] if rows else None

    def number(self, statement):
        try:
            return int(self.sql(statement) or 0)
        except Wrong:
            # Between two processes nobody answers for a moment.
            return 0

    def queue(self, count):
        lines = "".join(f'{{"prompt": "say {n}"}}\n' for n in range(self.prompts, self.prompts + count))
        self.prompts += count
        return self.ok("rlhfctl", "prompts", "add", "-", "--set", "plain", "--reserve", "0.2", stdin=lines)

    def ended(self):
        return self.number("SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL")

    def until_ended(self, count):
        return self.until(f"{count} iterations to end", lambda: self.ended() >= count, 600)

    def until_in_flight(self, key):
        """Waits until a worker has a unit whose key is like that; queues prompts where the run waits for them."""
        statement = ("SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id "
                     f"WHERE a.ended_ms IS NULL AND a.lease_id IS NOT NULL AND u.key LIKE '{key}'")
        fresh = self.number("SELECT count(*) FROM iterations WHERE ended_ms IS NULL")
        if not fresh:
            self.queue(20)
        return self.until(f"a unit {key} to run", lambda: self.number(statement), 300)

    def until_in_training(self, step):
        """Waits until a training has made so many steps, so that it has saved its state."""
        self.until_in_flight("%/train")

        def made():
            done = self.run("rlhfctl", "--json", "status")
            leases = json.loads(done.stdout)["leases"] if done.returncode == 0 else []
            units = [lease for lease in leases if (lease.get("unit") or "").endswith("/train")]
            return any((lease.get("step") or 0) >= step for lease in units)
        return self.until(f"step {step} of a training", made, 300)

    def processes(self):
        done = self.run("sh", "-c", "cat /proc/[0-9]*/comm")
        return [name for name in done.stdout.split("\n") if name.startswith("rlhfd")]
