"""Kits of which every outcome is known, for the tests of `scripts/checks/run_sglang_kits.py`."""

from __future__ import annotations

import os
import time
import unittest


def mixed(_target: object) -> type[unittest.TestCase]:
    class Mixed(unittest.TestCase):
        def test_1_passes(self) -> None:
            print("avg_kl_div=0.5")

        def test_2_fails(self) -> None:
            self.fail("one is not\ntwo")

        def test_3_raises(self) -> None:
            raise KeyError("meta_info")

        @unittest.skip("needs a network")
        def test_4_is_skipped(self) -> None:
            pass

        def test_5_fails_in_a_part(self) -> None:
            for number in (1, 2):
                with self.subTest(number):
                    assert number == 1

    return Mixed


def hanging(_target: object) -> type[unittest.TestCase]:
    class Hanging(unittest.TestCase):
        def test_1_passes(self) -> None:
            pass

        def test_2_hangs(self) -> None:
            time.sleep(60)

        def test_3_waits(self) -> None:
            pass

    return Hanging


def crashing(_target: object) -> type[unittest.TestCase]:
    class Crashing(unittest.TestCase):
        def test_crashes(self) -> None:
            os._exit(7)

    return Crashing


def absent(_target: object) -> type[unittest.TestCase]:
    raise ImportError("no such kit")
