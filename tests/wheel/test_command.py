"""What the command decides, and the processes and sockets that it starts from: without the programs."""

import os
import signal
import socket
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from pillion import address, children, control, convert, flags, models, programs
from pillion.failure import Failure
from pillion.restarts import FIRST_PAUSE, LONGEST_PAUSE, WELL, Restarts
from pillion.supervisor import Plan, Supervisor


class Addresses(unittest.TestCase):
    def test_people_write_them_in_several_ways(self):
        for text, host, port in [
            ("8080", "127.0.0.1", 8080),
            (":8080", "0.0.0.0", 8080),
            ("localhost:80", "127.0.0.1", 80),
            ("10.1.2.3:1", "10.1.2.3", 1),
            ("[::1]:0", "::1", 0),
        ]:
            self.assertEqual(address.parse(text), address.Address(host, port), text)
        for wrong in [
            "",
            "here",
            "here:80",
            "65536",
            "::1",
            ":",
            "127.0.0.1",
            "localhost",
            "[127.0.0.1]:80",
            "fe80::1:80",
        ]:
            with self.assertRaises(Failure, msg=wrong) as refused:
                address.parse(wrong)
            self.assertEqual(refused.exception.code, 64)

    def test_a_taken_one_is_refused_and_a_free_one_is_named(self):
        listener, bound = address.bind(address.parse("localhost:0"))
        with listener:
            listener.listen()
            self.assertGreater(bound.port, 0)
            self.assertEqual(bound.url, f"http://localhost:{bound.port}")
            with self.assertRaises(Failure) as refused:
                address.bind(bound)
        self.assertEqual(refused.exception.code, 69)


class Flags(unittest.TestCase):
    PROXY = {"--max-queue": True, "--log-prompts": False, "--socket": True}
    WORKER = {"--slots": True, "--log-prompts": False, "--socket": True}

    def read(self, text: str) -> flags.Line:
        return flags.read(text.split(), {"--workers"}, lambda: (self.PROXY, self.WORKER))

    def test_each_goes_to_whom_it_belongs(self):
        line = self.read("--max-queue 5 model --slots=2 --workers 3 --log-prompts --socket /s")
        self.assertEqual((line.own, line.places), ({"--workers": "3"}, ["model"]))
        self.assertEqual(line.proxy, ["--max-queue", "5", "--log-prompts", "--socket", "/s"])
        self.assertEqual(line.worker, ["--slots=2", "--log-prompts", "--socket", "/s"])

    def test_what_nobody_knows_or_lacks_its_value_is_refused(self):
        for wrong in ["--nothing", "-x", "--workers", "--slots"]:
            with self.assertRaises(Failure, msg=wrong) as refused:
                self.read(wrong)
            self.assertEqual(refused.exception.code, 64)

    def test_programs_are_not_asked_without_need(self):
        def asked():
            raise AssertionError

        self.assertEqual(flags.read(["model"], {"--workers"}, asked).places, ["model"])


class Restarting(unittest.TestCase):
    def test_what_was_never_ready_is_given_up(self):
        self.assertIsNone(Restarts().ended(5.0))

    def test_pauses_grow_to_a_bound_and_end_once_it_is_well(self):
        restarts, pauses = Restarts(), []
        for now in range(10):
            restarts.ready(now)
            pauses.append(restarts.ended(now) - now)
        self.assertEqual(pauses[:4], [0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
        self.assertEqual(pauses[-1], LONGEST_PAUSE)
        restarts.ready(100.0)
        self.assertEqual(restarts.ended(100.0 + WELL), 100.0 + WELL)

    def test_one_that_was_ready_once_is_started_again_though_it_is_not_now(self):
        restarts = Restarts()
        restarts.ready(0.0)
        restarts.ended(1.0)
        self.assertEqual(restarts.ended(2.0), 2.0 + FIRST_PAUSE)


class Supervising(unittest.TestCase):
    def setUp(self):
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        nowhere = programs.Programs(Path("/no/proxy"), Path("/no/worker"), {})
        listener = socket.socket()
        self.addCleanup(listener.close)
        with mock.patch.dict("os.environ", {"XDG_RUNTIME_DIR": folder.name}):
            sockets = control.Sockets(address.Address("127.0.0.1", 1))
        self.addCleanup(sockets.remove)
        self.supervisor = Supervisor(Plan(nowhere, [], [], "model", 2, listener, sockets, []))
        self.supervisor.selector.register(sockets.listener, 1)
        self.supervisor.workers[1].pid = 0x7FFFFFFF

    def test_a_worker_that_was_never_ready_ends_all_with_its_code(self):
        self.supervisor.ended(0x7FFFFFFF, 66)
        self.assertEqual(self.supervisor.exit_code, 66)

    def test_where_no_process_can_be_started_it_ends(self):
        self.supervisor.workers[1].pid = None
        wakeup = signal.set_wakeup_fd(-1)
        self.addCleanup(signal.set_wakeup_fd, wakeup)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.supervisor.selector.unregister(self.supervisor.plan.sockets.listener)
        with mock.patch("pillion.children.start", side_effect=OSError(11, "no room")) as started:
            self.assertEqual(self.supervisor.run(), 69)
        self.assertEqual(started.call_count, 1)

    def test_it_is_started_again_where_another_has_been_ready(self):
        self.supervisor.ready(self.supervisor.workers[0], 0.0)
        self.supervisor.ended(0x7FFFFFFF, -9)
        self.assertIsNone(self.supervisor.exit_code)
        self.assertIsNotNone(self.supervisor.workers[1].due)
        self.supervisor.signalled(15)
        self.assertIsNone(self.supervisor.pause(), "nothing is due while it stops")


class Processes(unittest.TestCase):
    def test_a_signal_right_after_the_start_is_the_childs_and_not_lost(self):
        reader, writer = os.pipe2(os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        self.addCleanup(signal.set_wakeup_fd, signal.set_wakeup_fd(writer))
        for _ in range(20):
            pid = children.start(Path("/bin/sleep"), ["60"], dict(os.environ))
            os.kill(pid, signal.SIGTERM)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGTERM)
        with self.assertRaises(BlockingIOError):
            os.read(reader, 1)

    def test_a_server_that_drains_leaves_its_successors_sockets_alone(self):
        place = address.Address("127.0.0.1", 1)
        with TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"XDG_RUNTIME_DIR": folder}):
            with mock.patch("os.getpid", return_value=1):
                draining = control.Sockets(place)
            draining.leave()
            successor = control.Sockets(place)
            self.addCleanup(successor.remove)
            self.assertTrue(draining.folder.exists(), "its programs still use it")
            draining.remove()
            self.assertTrue(successor.path.exists() and successor.folder.exists())


class Models(unittest.TestCase):
    def test_what_a_name_means(self):
        with TemporaryDirectory() as folder:
            path = Path(folder)
            self.assertEqual(self.refused(folder).code, 66)
            (path / "config.json").write_text("{}")
            source = models.find(folder)
            self.assertFalse(source.converted)
            kept = source.cached("int8")
            self.assertNotEqual(kept, source.cached("float16"))
            (path / "weights").write_text("other")
            self.assertNotEqual(kept, models.find(folder).cached("int8"), "its files have changed")
            (path / "model.bin").write_text("")
            self.assertTrue(models.find(folder).converted)
            (path / "some.gguf").write_text("")
            self.assertIn("GGUF", str(self.refused(str(path / "some.gguf"))))
        self.assertEqual(models.find("facebook/opt-125m").name, "facebook/opt-125m")
        self.assertIn("empty", str(self.refused("")))
        for wrong in ["/no/such", "./nothing", "a/b/c", "../x"]:
            self.assertIn("does not exist", str(self.refused(wrong)))

    def refused(self, text: str) -> Failure:
        with self.assertRaises(Failure, msg=text) as refused:
            models.find(text)
        return refused.exception

    def test_quantization_suits_the_device(self):
        nowhere = programs.Programs(Path("/no/proxy"), Path("/no/worker"), {})
        self.assertEqual(convert.quantization(None, "cpu", nowhere), "int8")
        self.assertEqual(convert.quantization(None, "cuda", nowhere), "float16")
        self.assertEqual(convert.quantization("int16", "cuda", nowhere), "int16")
        with self.assertRaises(Failure):
            convert.quantization("int3", "cpu", nowhere)


if __name__ == "__main__":
    unittest.main()
