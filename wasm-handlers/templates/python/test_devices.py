import unittest

from devices import devices_of


class Devices(unittest.TestCase):
    def test_each_line_is_a_device_once(self):
        self.assertEqual(devices_of("front\n\n back \nfront\n"), ["back", "front"])
        self.assertEqual(devices_of(""), [])


if __name__ == "__main__":
    unittest.main()
