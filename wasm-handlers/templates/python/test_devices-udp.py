import unittest

from devices import devices_of


class Devices(unittest.TestCase):
    def test_each_address_is_a_device_once(self):
        answers = [(("192.0.2.7", 4000), b"me"), (("192.0.2.8", 1), b"me"), (("192.0.2.7", 4001), b"me")]
        self.assertEqual(devices_of(answers), {"192.0.2.7": "192.0.2.7:4001", "192.0.2.8": "192.0.2.8:1"})
        self.assertEqual(devices_of([]), {})


if __name__ == "__main__":
    unittest.main()
